"""Dots with their 95% intervals: reward models by language, and the differences of a study."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from aya_jax.report.svg import across, chart, tag, ticks
from aya_jax.report.words import (
    REWARDS,
    difference_text,
    excludes,
    figure_text,
    label,
    number,
    percent,
)

ROW, TOP, FOOT = 24.0, 8.0, 24.0


def _interval(
    figure: Mapping[str, float], x: Any, y: float, kind: str, title: str, **data: Any
) -> Markup:
    return tag(
        "g",
        tag("title", title),
        tag(
            "line",
            x1=across(x(figure["low"])),
            x2=across(x(figure["high"])),
            y1=y,
            y2=y,
            class_=f"range {kind}",
        ),
        tag("circle", cx=across(x(figure["value"])), cy=y, r=4.5, class_=f"point {kind}", **data),
    )


def pair_accuracy(
    accuracy: Mapping[str, Any], order: Sequence[str], names: Mapping[str, str]
) -> Markup:
    """Return a reward model's share of held-out pairs ranked right, one row a language.

    The row of all languages comes first; the line at one half is guessing.
    """
    rows = [("all", accuracy["overall"])]
    rows += [(c, accuracy["by_language"][c]) for c in order if c in accuracy["by_language"]]
    bottom = TOP + ROW * len(rows)
    parts = _grid([0.0, 0.25, 0.5, 0.75, 1.0], lambda v: v, bottom, lambda v: f"{100 * v:.0f}%")
    parts.append(tag("line", x1="50%", x2="50%", y1=TOP, y2=bottom, class_="reference"))
    for i, (code, figure) in enumerate(rows):
        y = TOP + ROW * (i + 0.5)
        name = "All languages" if code == "all" else names.get(code, code)
        kind = "overall" if code == "all" else "plain"
        shown = "All" if code == "all" else name
        parts.append(tag("text", shown, x="-10", y=y + 4, class_="row-name", text_anchor="end"))
        title = f"{name}: {figure_text('correct', figure)}, {figure['n']} pairs"
        parts.append(_interval(figure, lambda v: v, y, kind, title, data_language=code))
        value = percent(figure["value"])
        parts.append(tag("text", value, x="100%", dx="10", y=y + 4, class_="row-value"))
    return chart("Held-out pairs ranked right, by language", *parts, height=bottom + FOOT)


def span_of(comparisons: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the ends of the axis that all comparisons of one metric share; zero is within."""
    figures = [f for c in comparisons for f in c["difference"].values()]
    low = min(0.0, *(f["low"] for f in figures))
    high = max(0.0, *(f["high"] for f in figures))
    marks = ticks(low, high, 4)
    return marks[0], marks[-1]


def forest(comparison: Mapping[str, Any], span: tuple[float, float]) -> Markup:
    """Return the forest plot of one comparison: a row a seed, right of zero as claimed."""
    metric, (low, high) = comparison["metric"], span
    seeds = comparison["difference"]
    bottom = TOP + ROW * len(seeds)

    def x(value: float) -> float:
        return (value - low) / (high - low)

    def shown(value: float) -> str:
        scaled = value if metric in REWARDS else 100 * value
        digits = 0 if abs(scaled - round(scaled)) < 1e-6 else 2 if metric in REWARDS else 1
        return number(scaled, digits, sign=True)

    parts = _grid(ticks(low, high, 4), x, bottom, shown)
    parts.append(
        tag("line", x1=across(x(0)), x2=across(x(0)), y1=TOP - 4, y2=bottom, class_="reference")
    )
    for i, (seed, figure) in enumerate(seeds.items()):
        y = TOP + ROW * (i + 0.5)
        kind = "unsure"
        if excludes(figure, 0.0):
            kind = "for" if figure["low"] > 0 else "against"
        title = f"seed {seed}: {difference_text(metric, figure)}"
        parts.append(
            tag("text", f"seed {seed}", x="-10", y=y + 4, class_="row-name", text_anchor="end")
        )
        parts.append(_interval(figure, x, y, kind, title, data_seed=seed))
    ours, theirs = (label(arm) for arm in comparison["arms"])
    title = f"{ours} minus {theirs}: {comparison['question']}"
    return chart(title, *parts, height=bottom + FOOT, class_="forest")


def _grid(marks: Sequence[float], x: Any, bottom: float, shown: Any) -> list[Markup]:
    parts = []
    for mark in marks:
        place = across(x(mark))
        parts.append(tag("line", x1=place, x2=place, y1=TOP, y2=bottom, class_="grid"))
        parts.append(
            tag("text", shown(mark), x=place, y=bottom + 16, class_="tick", text_anchor="middle")
        )
    return parts
