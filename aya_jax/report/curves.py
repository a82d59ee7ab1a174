"""Training curves as small multiples: one panel a model and metric, one labelled line a part."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from aya_jax.report.svg import digits, short, tag, ticks
from aya_jax.report.words import label, number

History = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
Points = list[tuple[float, float]]

WIDTH, HEIGHT = 360.0, 196.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 104.0, 10.0, 26.0
# As many colours as the style has; each has its own dashes too.
SERIES = 8
LABEL_STEP = 13.0
METRICS = {
    "loss": "loss",
    "rewards/accuracies": "pairs ranked right",
    "rewards/margins": "reward margin",
}


@dataclass(frozen=True)
class Panel:
    """One small chart: `lines` by name, in pieces; `breaks`: where each training of a chain begins."""

    title: str
    metric: str
    lines: Mapping[str, list[Points]]
    breaks: Mapping[float, str]


def panels(history: History, steps: Sequence[str]) -> dict[str, list[Panel]]:
    """Group a run's curves: base, teachers, reward models, fine-tuning, preference training.

    Trainings that follow one another (offline and online DPO of one cluster) make one line.

    Args:
      history: of each stage, `{metric: [[step, value], ...]}`.
      steps: the models of the recipe's own path.
    """
    base, teachers, rewards, tuned, preferred = (dict[str, Any]() for _ in range(5))
    for stage, curves in history.items():
        if stage == "base":
            base[stage] = curves
        elif stage.startswith("teacher."):
            teachers[stage.removeprefix("teacher.")] = curves
        elif stage in ("reward", "judge"):
            rewards[stage] = curves
        elif "rewards/accuracies" in curves:
            preferred[stage] = curves
        else:
            tuned[stage] = curves
    groups = {
        "Base model, teachers and reward models": [
            *_of_metrics("base model", base, ["loss"]),
            *_of_metrics("teachers", teachers, ["loss"]),
            *_of_metrics("reward models", rewards, list(METRICS)),
        ],
        "Fine-tuning of the clusters": [
            panel
            for model, parts in _by_model(tuned).items()
            for panel in _of_metrics(label(model), parts, ["loss"])
        ],
        "Preference training of the clusters": [
            panel for chain in _chains(_by_model(preferred), steps) for panel in _chained(chain)
        ],
    }
    return {title: found for title, found in groups.items() if found}


def _points(curve: Sequence[Sequence[float]], offset: float = 0.0) -> Points:
    return [(offset + step, value) for step, value in curve if math.isfinite(value)]


def _of_metrics(title: str, parts: Mapping[str, Any], metrics: Sequence[str]) -> list[Panel]:
    out = []
    for metric in metrics:
        curves = {name: _points(c[metric]) for name, c in parts.items() if metric in c}
        lines = {name: [points] for name, points in curves.items() if points}
        if lines:
            out.append(Panel(title, metric, lines, {}))
    return out


def _by_model(stages: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    models: dict[str, dict[str, Any]] = {}
    for stage, curves in stages.items():
        model, _, part = stage.partition(".")
        models.setdefault(model, {})[part or model] = curves
    return models


def _chains(models: Mapping[str, Any], steps: Sequence[str]) -> list[dict[str, Any]]:
    """Return the recipe's own path as one chain, and every other numbered family as another."""
    chains: dict[str, dict[str, Any]] = {}
    for model, parts in models.items():
        family = "" if model in steps else re.sub(r"_\d+$", "", model)
        chains.setdefault(family, {})[model] = parts
    return list(chains.values())


def _chained(chain: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    out = []
    title = " to ".join(
        dict.fromkeys(label(model) for model in (*list(chain)[:1], *list(chain)[-1:]))
    )
    for metric in METRICS:
        lines: dict[str, list[Points]] = {}
        breaks: dict[float, str] = {}
        offset = 0.0
        for model, parts in chain.items():
            breaks[offset] = model
            for part, curves in parts.items():
                points = _points(curves.get(metric, []), offset)
                if points:
                    lines.setdefault(part, []).append(points)
            offset += max(
                (points[-1][0] for c in parts.values() for points in c.values() if points),
                default=0.0,
            )
        if lines:
            out.append(Panel(title, metric, lines, breaks))
    return out


def draw(panel: Panel) -> Markup:
    """Return a panel's chart; its lines are labelled at their ends."""
    every = [v for pieces in panel.lines.values() for points in pieces for _, v in points]
    shares = panel.metric == "rewards/accuracies"
    marks = [0.0, 0.25, 0.5, 0.75, 1.0] if shares else ticks(min(every), max(every), 4)
    last = max(pieces[-1][-1][0] for pieces in panel.lines.values())

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (marks[-1] - value) / (marks[-1] - marks[0])

    parts = []
    for mark in marks:
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(mark), y2=y(mark), class_="grid"))
        shown = f"{100 * mark:.0f}%" if shares else number(mark, digits(marks))
        parts.append(
            tag("text", shown, x=LEFT - 6, y=y(mark) + 4, class_="tick", text_anchor="end")
        )
    for place in [p for p in panel.breaks if p]:
        parts.append(
            tag("line", x1=x(place), x2=x(place), y1=TOP, y2=HEIGHT - BOTTOM, class_="break")
        )
    floor = HEIGHT - BOTTOM + 16
    if len(panel.breaks) > 1:
        places = [*panel.breaks, last]
        for model, (start, end) in zip(panel.breaks.values(), pairwise(places), strict=True):
            shown = label(model).replace(" DPO", "")
            shown = shown if len(shown) < 10 else shown.split(" ")[-1]
            middle = x((start + end) / 2)
            parts.append(tag("text", shown, x=middle, y=floor, class_="tick", text_anchor="middle"))
    else:
        for step, anchor in ((0.0, "start"), (last, "end")):
            shown = f"{step:.0f}" if step == 0 else f"{step:.0f} steps"
            parts.append(tag("text", shown, x=x(step), y=floor, class_="tick", text_anchor=anchor))
    ends = _spread([y(pieces[-1][-1][1]) for pieces in panel.lines.values()])
    for i, (name, pieces) in enumerate(panel.lines.items()):
        end_x, end_y = x(pieces[-1][-1][0]), y(pieces[-1][-1][1])
        series = f"s{i % SERIES}"
        for points in pieces:
            path = " ".join(f"{short(x(s), 1)},{short(y(v), 1)}" for s, v in points)
            parts.append(tag("polyline", points=path, class_=f"line {series}", data_line=name))
        parts.append(tag("circle", cx=end_x, cy=end_y, r=2.5, class_=f"dot {series}"))
        parts.append(
            tag(
                "line",
                x1=end_x + 4,
                y1=end_y,
                x2=WIDTH - RIGHT + 6,
                y2=ends[i],
                class_=f"leader {series}",
            )
        )
        parts.append(
            tag("text", label(name), x=WIDTH - RIGHT + 9, y=ends[i] + 4, class_=f"name {series}")
        )
    title = f"{panel.title}: {METRICS[panel.metric]} by training step"
    told = ", ".join(f"{label(n)} ends at {p[-1][-1][1]:.3g}" for n, p in panel.lines.items())
    return tag(
        "svg",
        *parts,
        class_="curve",
        viewBox=f"0 0 {short(WIDTH)} {short(HEIGHT)}",
        role="img",
        aria_label=f"{title}; {told}",
    )


def _spread(places: Sequence[float]) -> list[float]:
    """Move labels apart so that none covers another, in their order and within the panel."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    out = list(places)
    floor = TOP
    for i in order:
        out[i] = max(out[i], floor)
        floor = out[i] + LABEL_STEP
    ceiling = HEIGHT - BOTTOM + 4
    for i in reversed(order):
        out[i] = min(out[i], ceiling)
        ceiling = out[i] - LABEL_STEP
    return out
