"""How a model came to be: the graph of its trainings and merges, drawn from the top down."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from aya_jax.report.svg import across, chart, lines, tag, wrapped
from aya_jax.report.words import label

Lineage = Mapping[str, Mapping[str, Any]]
ROW, NODE = 90.0, 54.0
METHODS = {"pretrain": "pre-training", "sft": "SFT", "dpo": "DPO", "reward": "reward model"}


def method_name(entry: Mapping[str, Any] | None) -> str:
    """Return what made a model: a training, or a merge by some method."""
    if entry is None:
        return "given"
    method = str(entry.get("method", ""))
    return METHODS.get(method, f"{label(method)} merge")


def ancestry(lineage: Lineage, model: str) -> list[list[str]]:
    """Return the models that went into `model`, the oldest first, in layers, itself the last."""
    depth: dict[str, int] = {}

    def visit(name: str) -> int:
        if name not in depth:
            depth[name] = 0
            parents = [p["path"] for p in lineage.get(name, {}).get("parents", ())]
            depth[name] = max((visit(parent) + 1 for parent in parents), default=0)
        return depth[name]

    visit(model)
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in sorted(depth, key=lambda n: (list(lineage).index(n) if n in lineage else -1, n)):
        layers[depth[name]].append(name)
    return layers


def graph(lineage: Lineage, model: str) -> Markup:
    """Return the drawing of a model's ancestry; a merge's edges carry their weights."""
    layers = ancestry(lineage, model)
    width = {name: min(0.92 / len(layer), 0.34) for layer in layers for name in layer}
    place = {
        name: ((i + 0.5) / len(layer), row * ROW + 2)
        for row, layer in enumerate(layers)
        for i, name in enumerate(layer)
    }
    edges, nodes = [], []
    for name, (x, top) in place.items():
        for parent in lineage.get(name, {}).get("parents", ()):
            from_x, from_top = place[parent["path"]]
            y1, y2 = from_top + NODE, top
            weight = parent.get("weight")
            kind = "edge" if weight is None else "edge merged"
            edges.append(tag("line", x1=across(from_x), x2=across(x), y1=y1, y2=y2, class_=kind))
            if weight is not None:
                at = 0.4
                edges.append(
                    tag(
                        "text",
                        f"{weight:.3g}",
                        x=across(from_x + at * (x - from_x)),
                        y=y1 + at * (y2 - y1) + 4,
                        class_="weight halo",
                        text_anchor="middle",
                        data_edge=f"{parent['path']}>{name}",
                    )
                )
        nodes.append(_node(name, lineage.get(name), x, top, width[name]))
    title = f"How {label(model)} was made"
    return chart(title, *edges, *nodes, height=(len(layers) - 1) * ROW + NODE + 4, class_="lineage")


def _node(name: str, entry: Mapping[str, Any] | None, x: float, top: float, width: float) -> Markup:
    method = method_name(entry)
    kind = "merge" if method.endswith("merge") else str((entry or {}).get("method", "given"))
    texts = wrapped(label(name.partition(".")[2] or name), 14)[:2]
    step = 13.5
    first = top + NODE / 2 + 4 - step * len(texts) / 2
    return tag(
        "g",
        tag("title", f"{label(name)}: {method}"),
        tag(
            "rect",
            x=across(x - width / 2),
            width=across(width),
            y=top,
            height=NODE,
            rx=NODE / 2 if kind == "merge" else 5,
            class_=f"node {kind}",
            data_node=name,
        ),
        lines(texts, x=across(x), y=first, step=step, class_="node-name"),
        tag(
            "text",
            method,
            x=across(x),
            y=first + step * len(texts),
            class_="node-method",
            text_anchor="middle",
        ),
    )


def rows(lineage: Lineage) -> list[dict[str, Any]]:
    """Return a table row a model: what made it, from which models, with which weights."""
    return [
        {
            "label": label(name),
            "method": method_name(entry),
            "parents": [
                label(p["path"]) + ("" if p.get("weight") is None else f" × {p['weight']:.3g}")
                for p in entry.get("parents", ())
            ],
        }
        for name, entry in lineage.items()
    ]
