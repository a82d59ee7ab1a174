"""A comparison of models as one page that needs nothing else, the same for the same comparison."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from aya_jax.report.environment import page_template
from aya_jax.report.lines import Dot, line_chart
from aya_jax.report.words import label, number, percent

Group = Mapping[str, Any]
# What is told of two models, and how it is written.
PAIRS = {
    "cosine": (
        "Cosine of task vectors",
        "1: they move alike; 0: they have nothing in common; below 0: they undo each other",
    ),
    "opposite": (
        "Opposite signs",
        "of the entries that both move, the share that they move in opposite directions",
    ),
    "distance": ("Distance", "Euclidean, of all entries of the two models"),
}
# As many lines as a chart has room for; the tables of the JSON file have all.
LINES = 15


def render_comparison(content: Mapping[str, Any]) -> str:
    """Return the page of a comparison.

    Args:
      content: of `comparison.json`.
    """
    names, whole = content["models"], content["all"]
    pairs = list(combinations(range(len(names)), 2))
    known = [(key, *words) for key, words in PAIRS.items() if key in whole]
    layers = content["layers"]
    return page_template("compare.html").render(
        content=content,
        title=f"{len(names)} models compared",
        tiles=_tiles(content, pairs),
        matrices=[
            (title, meaning, [[_cell(key, value) for value in row] for row in whole[key]])
            for key, title, meaning in known
        ],
        norms=[number(value, 4) for value in whole.get("norm", ())],
        layers=[
            (title, _by_layer(title, key, layers, pairs))
            for key, title, _ in known
            if key != "distance"
        ],
        conflicts=_conflicts(layers) if "conflicts" in whole else None,
        columns=_columns(whole),
        groups=[
            (title, [_row(name, group, pairs) for name, group in content[key].items()])
            for title, key in (("By module", "modules"), ("By layer", "layers"))
        ],
        curve=_curve(content["curves"], names) if content["curves"] else None,
        barriers=[_barrier(curve, names) for curve in content["curves"]],
    )


def of_merges(merges: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return a table and a chart of models that were merged, None if there are none.

    Args:
      merges: what was found of them, by the model that they were merged into.
    """
    if not merges:
        return None
    rows: list[list[str]] = []
    lines: dict[str, list[Dot]] = {}
    names: dict[float, str] = {}
    for model, found in merges.items():
        pairs = list(combinations(range(len(found["models"])), 2))
        rows.append(_row(label(model), found["all"], pairs))
        places = _places(found["layers"])
        lines[label(model)] = [Dot(x, *(group["conflicts"],) * 3) for x, _, group in places]
        names |= _axis(places)
    columns = ["model", *_columns(next(iter(merges.values()))["all"])[1:]]
    return {"columns": columns, "rows": rows, "chart": _shares("Sign conflicts", lines, names)}


def _tiles(content: Mapping[str, Any], pairs: Sequence[tuple[int, int]]) -> list[tuple[str, ...]]:
    whole, tiles = content["all"], list[tuple[str, ...]]()
    if "cosine" in whole:
        found = [c for i, j in pairs if (c := whole["cosine"][i][j]) is not None]
        if found:
            text = number(sum(found) / len(found), 3)
            tiles.append(("mean cosine", text, "of two models' task vectors"))
        note = "of the entries are moved up by some models and down by others"
        tiles.append(("sign conflicts", percent(whole["conflicts"]), note))
    heights = [c["barrier"]["value"] for c in content["curves"] if c["barrier"]]
    if heights:
        note = "nats a token above the straight line between two models"
        tiles.append(("highest loss barrier", number(max(heights), 4), note))
    return tiles


def _cell(key: str, value: float | None) -> dict[str, Any]:
    """Return a cell's text, and its colour where it is a share."""
    if value is None:
        return {"text": "-", "class": "none"}
    if key == "distance":
        return {"text": number(value, 3), "class": ""}
    text = percent(value) if key == "opposite" else number(value, 3)
    return {"text": text, "class": f"h{min(10, max(0, round(10 * value)))}"}


def _pair(i: int, j: int) -> str:
    """Return two models by their numbers, as names would not fit beside a chart."""
    return f"{i + 1} : {j + 1}"


def _places(layers: Mapping[str, Group]) -> list[tuple[float, str, Group]]:
    inside = [(name, group) for name, group in layers.items() if name != "outside of the layers"]
    return [(float(i), name, group) for i, (name, group) in enumerate(inside)]


def _axis(places: Sequence[tuple[float, str, Group]]) -> dict[float, str]:
    every = max(1, -(-len(places) // 8))
    return {x: name.split("layer ")[-1] for x, name, _ in places[::every]}


def _by_layer(
    title: str,
    key: str,
    layers: Mapping[str, Group],
    pairs: Sequence[tuple[int, int]],
) -> Any:
    places = _places(layers)
    lines = {}
    for i, j in pairs[:LINES]:
        found = [(x, group[key][i][j]) for x, _, group in places]
        dots = [Dot(x, value, value, value) for x, value in found if value is not None]
        if dots:
            lines[_pair(i, j)] = dots
    return (
        line_chart(f"{title} by layer", lines, axis="layer", names=_axis(places)) if lines else ""
    )


def _conflicts(layers: Mapping[str, Group]) -> Any:
    places = _places(layers)
    if not places:
        return ""
    dots = [Dot(x, *(group["conflicts"],) * 3) for x, _, group in places]
    return _shares("Sign conflicts by layer", {"all models": dots}, _axis(places))


def _shares(title: str, lines: Mapping[str, Sequence[Dot]], names: Mapping[float, str]) -> Any:
    """Return a chart of shares by layer, in percent."""
    return line_chart(
        title,
        lines,
        axis="layer",
        names=names,
        shown=lambda v, d: f"{number(100 * v, max(0, d - 2))}%",
    )


def _columns(whole: Group) -> list[str]:
    more = ["mean cosine", "sign conflicts"] if "cosine" in whole else []
    return ["", "entries", "mean distance", *more]


def _row(name: str, group: Group, pairs: Sequence[tuple[int, int]]) -> list[str]:
    def mean(key: str) -> str:
        found = [value for i, j in pairs if (value := group[key][i][j]) is not None]
        return number(sum(found) / len(found), 3) if found else "-"

    row = [name, f"{group['entries']:,}", mean("distance")]
    return [*row, mean("cosine"), percent(group["conflicts"])] if "cosine" in group else row


def _numbers(curve: Mapping[str, Any], names: Sequence[str]) -> str:
    return _pair(*(names.index(name) for name in curve["models"]))


def _curve(curves: Sequence[Mapping[str, Any]], models: Sequence[str]) -> Any:
    lines = {
        _numbers(curve, models): [Dot(p["t"], p["value"], p["low"], p["high"]) for p in points]
        for curve in curves[:LINES]
        if (points := curve["points"])
    }
    if not lines:
        return ""
    names = {0.0: "0", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"}
    return line_chart("Loss on the way from one model to the other", lines, axis="t", names=names)


def _barrier(curve: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    pair, height = _numbers(curve, names), curve["barrier"]
    if height is None:
        return [pair, "no number", "-"]
    told = "none" if height["t"] in (0.0, 1.0) else f"{_figure(height)} at t = {height['t']:.2g}"
    return [pair, told, _figure(curve["half"], sign=True) if curve["half"] else "-"]


def _figure(figure: Mapping[str, float], *, sign: bool = False) -> str:
    value, low, high = (number(figure[key], 4, sign=sign) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
