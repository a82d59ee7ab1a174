"""What each step of the recipe gains: the win rate and the correct answers, as columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from aya_jax.report.svg import across, chart, lines, tag, wrapped
from aya_jax.report.words import figure_text, label, number, percent

TOP, HEIGHT, FOOT = 26.0, 240.0, 62.0
# How much of a step's width its columns take.
FILLED = 0.62


def y_of(share: float) -> float:
    """Return the height in pixels at which a share from 0 to 1 is drawn."""
    return TOP + (1.0 - share) * HEIGHT


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
    marks, texts, told = [_axis()], [], []
    before: float | None = None
    for i, model in enumerate(steps):
        found = {s: m[model][metric] for s, m in seeds.items() if metric in m.get(model, {})}
        middle, value = (i + 0.5) / len(steps), None
        if found:
            value = sum(figure["value"] for figure in found.values()) / len(found)
            marks.append(_columns(model, metric, found, middle, len(steps), model == opponent))
        elif metric == "win_rate" and model == opponent:
            value = 0.5
            marks.append(_reference(middle, len(steps)))
        name = wrapped(label(model), 9)
        texts.append(lines(name, y=y_of(0) + 17, class_="step", **_centred(middle)))
        if value is None:
            continue
        told.append(f"{label(model)} {percent(value)}")
        top = max([figure["high"] for figure in found.values()], default=value)
        texts.append(
            tag("text", percent(value), y=y_of(top) - 8, class_="value halo", **_centred(middle))
        )
        if before is not None:
            change = number(100 * (value - before), 1, sign=True)
            texts.append(
                tag("text", change, y=y_of(0) + FOOT - 4, class_="change", **_centred(middle))
            )
        before = value
    if line is not None:
        y = y_of(line)
        marks.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="reference"))
    told_title = f"{title}: {', '.join(told)}"
    return chart(told_title, *marks, *texts, height=y_of(0) + FOOT, class_="gains")


def _centred(x: float) -> dict[str, str]:
    return {"x": across(x), "text_anchor": "middle"}


def _axis() -> Markup:
    parts = []
    for tenth in (0, 25, 50, 75, 100):
        y = y_of(tenth / 100)
        parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{tenth}%", x="-8", y=y + 4, class_="tick", text_anchor="end"))
    return tag("g", *parts, aria_hidden="true")


def _columns(
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
                    y=y_of(figure["value"]),
                    height=HEIGHT * figure["value"],
                    class_="column opponent" if is_opponent else "column",
                    data_model=model,
                    data_seed=seed,
                    data_value=f"{figure['value']:.6f}",
                ),
                tag(
                    "line",
                    x1=across(centre),
                    x2=across(centre),
                    y1=y_of(figure["low"]),
                    y2=y_of(figure["high"]),
                    class_="whisker",
                ),
                *(
                    tag(
                        "line",
                        x1=across(centre - 0.14 * width),
                        x2=across(centre + 0.14 * width),
                        y1=y_of(end),
                        y2=y_of(end),
                        class_="whisker",
                    )
                    for end in (figure["low"], figure["high"])
                ),
            )
        )
    return tag("g", *parts)


def _reference(middle: float, steps: int) -> Markup:
    """The opponent against itself: no measurement, so only an outline."""
    width = FILLED / steps
    return tag(
        "rect",
        x=across(middle - width / 2),
        width=across(width),
        y=y_of(0.5),
        height=HEIGHT / 2,
        class_="column outline",
    )
