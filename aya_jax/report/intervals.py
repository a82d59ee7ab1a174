"""Dots with their 95% intervals: reward models by language, and the differences of a study."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from aya_jax.report.svg import across, chart, digits, tag, ticks
from aya_jax.report.words import (
    REWARDS,
    Figure,
    difference_text,
    excludes,
    figure_text,
    label,
    number,
)

ROW, TOP, FOOT = 25.0, 8.0, 24.0


# One shape and side of the row a reward model, so that neither needs its colour.
SHAPES = ("round", "square")


def _interval(
    figure: Figure, x: Callable[[float], float], y: float, kind: str, title: str, **data: str
) -> Markup:
    """An interval as a line and its value as a dot, or as a square if `kind` has that word."""
    middle = across(x(figure["value"]))
    point = tag("circle", cx=middle, cy=y, r=4.5, class_=f"point {kind}", **data)
    if "square" in kind.split():
        point = tag(
            "rect",
            x=middle,
            y=y - 4,
            width=8,
            height=8,
            transform="translate(-4)",
            class_=f"point {kind}",
            **data,
        )
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
        point,
    )


def pair_accuracy(models: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> Markup:
    """Return reward models' shares of held-out pairs ranked right: a row a language, all first.

    Args:
      models: one or two reward models' figures, by what the models are called.
      names: of the languages, in the order of the rows.
    """
    rows = {"all": "All languages", **names}
    bottom = TOP + ROW * len(rows)
    marks = [0.0, 0.25, 0.5, 0.75, 1.0]
    parts = _grid(marks, lambda v: v, bottom, lambda v: f"{100 * v:.0f}%")
    parts.append(tag("line", x1="50%", x2="50%", y1=TOP, y2=bottom, class_="reference"))
    for i, (code, name) in enumerate(rows.items()):
        middle = TOP + ROW * (i + 0.5)
        strong = " strong" if code == "all" else ""
        shown = "All" if code == "all" else name
        parts.append(
            tag(
                "text",
                shown,
                x="-10",
                y=middle + 4,
                class_=f"row-name{strong}",
                text_anchor="end",
            )
        )
        for k, ((model, figures), shape) in enumerate(zip(models.items(), SHAPES, strict=False)):
            figure = figures["overall"] if code == "all" else figures["by_language"].get(code)
            if figure is None:
                continue
            y = middle + 9 * (k - (len(models) - 1) / 2)
            title = f"{model}, {name}: {figure_text('correct', figure)}, {figure['n']} pairs"
            kind = f"{shape}{strong}"
            parts.append(
                _interval(figure, lambda v: v, y, kind, title, data_model=model, data_language=code)
            )
            parts.append(
                tag(
                    "text",
                    f"{100 * figure['value']:.0f}",
                    x="100%",
                    dx=42 + 38 * k,
                    y=middle + 4,
                    class_=f"row-value {shape}{strong}",
                    text_anchor="end",
                )
            )
    told = ", ".join(f"{m} {figure_text('correct', f['overall'])}" for m, f in models.items())
    title = f"Held-out pairs ranked right, by language; all: {told}"
    return chart(title, *parts, height=bottom + FOOT, class_="accuracy")


def ranking(
    title: str,
    rows: Sequence[tuple[str, Figure, str]],
    *,
    shown: Callable[[float, int], str],
    zero: bool = False,
) -> Markup:
    """Return a row for each figure, in their order.

    Args:
      title: of the chart, for those who cannot see it.
      rows: name, figure, and what it is told apart by: a class of the style, such as `strong`.
      shown: the text of a number with so many decimals.
      zero: whether zero is marked, and always in sight.
    """
    ends = [figure[end] for _, figure, _ in rows for end in ("low", "high")] + [0.0] * zero
    marks = ticks(min(ends), max(ends), 4)
    low, high = marks[0], marks[-1]
    bottom = TOP + ROW * len(rows)

    def x(value: float) -> float:
        return (value - low) / (high - low)

    parts = _grid(marks, x, bottom, lambda v: shown(v, digits(marks)))
    if zero:
        place = across(x(0.0))
        parts.append(tag("line", x1=place, x2=place, y1=TOP, y2=bottom, class_="reference"))
    for i, (name, figure, kind) in enumerate(rows):
        y = TOP + ROW * (i + 0.5)
        parts.append(
            tag("text", name, x="-10", y=y + 4, class_=f"row-name {kind}", text_anchor="end")
        )
        value, *span = (shown(figure[key], 4) for key in ("value", "low", "high"))
        parts.append(
            _interval(figure, x, y, kind, f"{name}: {value} [{', '.join(span)}]", data_row=name)
        )
    return chart(title, *parts, height=bottom + FOOT, class_="ranking")


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

    scale = 1.0 if metric in REWARDS else 100.0
    marks = ticks(low, high, 4)
    decimals = digits([scale * mark for mark in marks])
    told: list[str] = []
    parts = _grid(marks, x, bottom, lambda v: number(scale * v, decimals, sign=True))
    parts.append(
        tag("line", x1=across(x(0)), x2=across(x(0)), y1=TOP - 4, y2=bottom, class_="reference")
    )
    for i, (seed, figure) in enumerate(seeds.items()):
        y = TOP + ROW * (i + 0.5)
        kind = "unsure"
        if excludes(figure, 0.0):
            kind = "for" if figure["low"] > 0 else "against"
        told.append(f"seed {seed} {difference_text(metric, figure)}")
        title = f"seed {seed}: {difference_text(metric, figure)}"
        parts.append(
            tag("text", f"seed {seed}", x="-10", y=y + 4, class_="row-name", text_anchor="end")
        )
        parts.append(_interval(figure, x, y, kind, title, data_seed=seed))
    ours, theirs = (label(arm) for arm in comparison["arms"])
    title = f"{ours} minus {theirs}, {comparison['question']}: {'; '.join(told)}"
    return chart(title, *parts, height=bottom + FOOT, class_="forest")


def _grid(
    marks: Sequence[float],
    x: Callable[[float], float],
    bottom: float,
    shown: Callable[[float], str],
) -> list[Markup]:
    parts = []
    for mark in marks:
        place = across(x(mark))
        parts.append(tag("line", x1=place, x2=place, y1=TOP, y2=bottom, class_="grid"))
        parts.append(
            tag("text", shown(mark), x=place, y=bottom + 16, class_="tick", text_anchor="middle")
        )
    return parts
