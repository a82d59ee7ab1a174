"""A few lines to write SVG with: elements, coordinates and ticks.

Charts as wide as their box give horizontal places in percent and vertical ones in pixels, so that
they fill any screen without their text being scaled. Colours are classes of the page's style.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

Content = str | float | Markup


def tag(name: str, *children: Content, **attributes: Content | None) -> Markup:
    """Return an element; `class_` gives `class`, `stroke_width` gives `stroke-width`.

    Attributes of None are left out; everything that is not markup already is escaped.
    """
    parts = []
    for key, value in attributes.items():
        if value is not None:
            shown = short(value) if isinstance(value, int | float) else value
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    inside = Markup("").join(map(escape, children))
    return Markup(f"<{name}{''.join(parts)}>") + inside + Markup(f"</{name}>")


def short(value: float, digits: int = 2) -> str:
    """Return a coordinate without needless digits."""
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def across(share: float) -> str:
    """Return a horizontal place, 0 to 1, in percent of the chart's width."""
    return f"{short(100 * share, 3)}%"


def chart(title: str, *children: Content, height: float, class_: str = "") -> Markup:
    """Return a chart that fills its box's width; what hangs over its sides stays visible."""
    return tag(
        "svg",
        *children,
        class_=f"chart {class_}".strip(),
        width="100%",
        height=height,
        role="img",
        aria_label=title,
    )


def lines(texts: Sequence[str], *, x: str, y: float, class_: str, step: float = 13.0) -> Markup:
    """Return lines of text below one another, their middles at `x`."""
    spans = [tag("tspan", text, x=x, dy=step if i else None) for i, text in enumerate(texts)]
    return tag("text", *spans, x=x, y=y, class_=class_, text_anchor="middle")


def wrapped(text: str, width: int) -> list[str]:
    """Break a label at its spaces into lines of at most `width` characters, where words allow it."""
    out: list[str] = []
    for word in text.split():
        if out and len(out[-1]) + 1 + len(word) <= width:
            out[-1] += f" {word}"
        else:
            out.append(word)
    return out


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, about `count` steps of them."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def digits(marks: Sequence[float]) -> int:
    """Return how many decimals tell evenly spaced ticks apart."""
    step = marks[1] - marks[0]
    return next(d for d in range(6) if abs(round(step, d) - step) < 1e-9 or d == 5)
