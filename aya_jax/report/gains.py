"""What each step of the recipe gains: the win rate and the correct answers, as columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from aya_jax.report.svg import across, chart, lines, short, tag, wrapped
from aya_jax.report.words import WIN_RATES, figure_text, label, number, percent

TOP, HEIGHT, FOOT = 26.0, 240.0, 62.0
# How much of a step's width its columns take.
FILLED = 0.62


@dataclass(frozen=True)
class Axis:
    """The vertical axis, from 0 to `ceiling`."""

    ceiling: float

    def y(self, share: float) -> float:
        """Return the height in pixels at which a share is drawn."""
        return TOP + (1.0 - share / self.ceiling) * HEIGHT

    def draw(self) -> Markup:
        """Return its five lines and their labels."""
        parts = []
        for quarter in range(5):
            share = self.ceiling * quarter / 4
            y = self.y(share)
            parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
            shown = f"{short(100 * share)}%"
            parts.append(tag("text", shown, x="-8", y=y + 4, class_="tick", text_anchor="end"))
        return tag("g", *parts, aria_hidden="true")


def _axis(metric: str, values: Sequence[float]) -> Axis:
    """A win rate is shown whole, with 50% in the middle; small shares get a shorter axis."""
    if metric in WIN_RATES:
        return Axis(1.0)
    return Axis(next(c for c in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if c >= max(values) or c == 1.0))


def gain_chart(
    metric: str,
    title: str,
    steps: Sequence[str],
    seeds: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    opponent: str,
    line: float | None,
) -> Markup:
    """Return the chart of one metric: a column with its 95% interval for each step and seed.

    Args:
      metric: a share, so that its figures are between 0 and 1.
      title: of the chart, for those who cannot see it.
      steps: models in the recipe's order.
      seeds: seed to model to metric to figure.
      opponent: a step of its own colour; against itself its win rate is half by definition.
      line: a share to draw a dashed line at.
    """
    every = [
        m[model][metric]["high"]
        for m in seeds.values()
        for model in steps
        if metric in m.get(model, {})
    ]
    axis = _axis(metric, every)
    marks, texts, told = [axis.draw()], [], []
    before: float | None = None
    for i, model in enumerate(steps):
        found = {s: m[model][metric] for s, m in seeds.items() if metric in m.get(model, {})}
        middle, value = (i + 0.5) / len(steps), None
        if found:
            value = sum(figure["value"] for figure in found.values()) / len(found)
            marks.append(
                _columns(axis, model, metric, found, middle, len(steps), model == opponent)
            )
        elif metric == "win_rate" and model == opponent:
            value = 0.5
            marks.append(_reference(axis, middle, len(steps)))
        name = wrapped(label(model), 9)
        texts.append(lines(name, x=across(middle), y=axis.y(0) + 17, class_="step"))
        if value is None:
            continue
        told.append(f"{label(model)} {percent(value)}")
        top = max([figure["high"] for figure in found.values()], default=value)
        texts.append(
            tag("text", percent(value), y=axis.y(top) - 8, class_="value halo", **_centred(middle))
        )
        if before is not None:
            change = number(100 * (value - before), 1, sign=True)
            texts.append(
                tag("text", change, y=axis.y(0) + FOOT - 4, class_="change", **_centred(middle))
            )
        before = value
    if line is not None:
        y = axis.y(line)
        marks.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="reference"))
    told_title = f"{title}: {', '.join(told)}"
    return chart(told_title, *marks, *texts, height=axis.y(0) + FOOT, class_="gains")


def _centred(x: float) -> dict[str, str]:
    return {"x": across(x), "text_anchor": "middle"}


def _columns(
    axis: Axis,
    model: str,
    metric: str,
    figures: Mapping[str, Mapping[str, float]],
    middle: float,
    steps: int,
    is_opponent: bool,
) -> Markup:
    """One column a seed, side by side."""
    width = FILLED / steps / len(figures)
    left = middle - FILLED / steps / 2
    parts = []
    for i, (seed, figure) in enumerate(figures.items()):
        x, centre = left + i * width, left + (i + 0.5) * width
        parts.append(
            tag(
                "g",
                tag("title", f"{label(model)}, seed {seed}: {figure_text(metric, figure)}"),
                tag(
                    "rect",
                    x=across(x + 0.04 * width),
                    width=across(0.92 * width),
                    y=axis.y(figure["value"]),
                    height=axis.y(0) - axis.y(figure["value"]),
                    class_="column opponent" if is_opponent else "column",
                    data_model=model,
                    data_seed=seed,
                    data_value=f"{figure['value']:.6f}",
                ),
                tag(
                    "line",
                    x1=across(centre),
                    x2=across(centre),
                    y1=axis.y(figure["low"]),
                    y2=axis.y(figure["high"]),
                    class_="whisker",
                ),
                *(
                    tag(
                        "line",
                        x1=across(centre - 0.14 * width),
                        x2=across(centre + 0.14 * width),
                        y1=axis.y(end),
                        y2=axis.y(end),
                        class_="whisker",
                    )
                    for end in (figure["low"], figure["high"])
                ),
            )
        )
    return tag("g", *parts)


def _reference(axis: Axis, middle: float, steps: int) -> Markup:
    """The opponent against itself: no measurement, so only an outline."""
    width = FILLED / steps
    return tag(
        "rect",
        x=across(middle - width / 2),
        width=across(width),
        y=axis.y(0.5),
        height=axis.y(0) - axis.y(0.5),
        class_="column outline",
    )
