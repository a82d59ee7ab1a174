"""Lines over a horizontal axis, labelled at their ends, with 95% intervals where these are known."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from aya_jax.report.svg import digits, short, tag, ticks
from aya_jax.report.words import number

WIDTH, HEIGHT = 520.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 84.0, 12.0, 40.0
SERIES = 8
STEP = 14.0


class Dot(NamedTuple):
    """A place on a line; without an interval `low` and `high` are `y`."""

    x: float
    y: float
    low: float
    high: float


def line_chart(
    title: str,
    lines: Mapping[str, Sequence[Dot]],
    *,
    axis: str,
    names: Mapping[float, str],
    shown: Callable[[float, int], str] = number,
) -> Markup:
    """Return a chart.

    Args:
      title: for those who cannot see it.
      lines: by name, each with a dot or more.
      axis: what is on the horizontal axis.
      names: of some of its places, from left to right.
      shown: the text of a height with so many decimals.
    """
    every = [dot for dots in lines.values() for dot in dots]
    marks = ticks(min(d.low for d in every), max(d.high for d in every), 4)
    first, last = min(d.x for d in every), max(d.x for d in every)

    def x(value: float) -> float:
        share = (value - first) / (last - first) if last > first else 0.5
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (marks[-1] - value) / (marks[-1] - marks[0])

    parts = []
    for mark in marks:
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(mark), y2=y(mark), class_="grid"))
        text = shown(mark, digits(marks))
        place = {"x": LEFT - 6, "y": y(mark) + 4}
        parts.append(tag("text", text, class_="tick", text_anchor="end", **place))
    floor = HEIGHT - BOTTOM + 15
    for value, text in names.items():
        parts.append(tag("text", text, x=x(value), y=floor, class_="tick", text_anchor="middle"))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(tag("text", axis, x=middle, y=HEIGHT - 6, class_="tick", text_anchor="middle"))
    order = sorted(range(len(lines)), key=lambda i: list(lines.values())[i][-1].y, reverse=True)
    ends, free = {}, TOP
    for i in order:
        ends[i] = max(y(list(lines.values())[i][-1].y), free)
        free = ends[i] + STEP
    for i, (name, dots) in enumerate(lines.items()):
        series = f"s{i % SERIES}"
        path = " ".join(f"{short(x(d.x), 1)},{short(y(d.y), 1)}" for d in dots)
        parts.append(tag("polyline", points=path, class_=f"line {series}", data_line=name))
        for dot in dots:
            text = shown(dot.y, 4)
            if dot.high > dot.low:
                text += f" [{shown(dot.low, 4)}, {shown(dot.high, 4)}]"
                span = {"x1": x(dot.x), "x2": x(dot.x), "y1": y(dot.low), "y2": y(dot.high)}
                parts.append(tag("line", class_=f"leader {series}", **span))
            told = tag("title", f"{name}, {axis} {names.get(dot.x, short(dot.x))}: {text}")
            parts.append(
                tag("circle", told, cx=x(dot.x), cy=y(dot.y), r=2.5, class_=f"dot {series}")
            )
        end = {"x": WIDTH - RIGHT + 9, "y": ends[i] + 4}
        parts.append(tag("text", name, class_=f"name {series}", **end))
    # Many lines need more room for their names than the lines themselves.
    height = max(HEIGHT, max(ends.values()) + STEP)
    box = f"0 0 {short(WIDTH)} {short(height)}"
    return tag("svg", *parts, class_="curve wide", viewBox=box, role="img", aria_label=title)
