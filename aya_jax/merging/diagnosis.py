"""How far models are from each other and from what they were trained from: whether they can be merged.

A task vector is the difference of a model from its base (arXiv 2212.04089). Models are read tensor by tensor, a
part of each at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from aya_jax.merging.sources import Source
from aya_jax.models.names import HFTensor

# Entries of a tensor, of every model, that are looked at together.
AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Sums:
    """What is added up over entries; n models.

    Attributes:
      entries: how many.
      products: float64 [n, n], inner products of task vectors; without a base, of differences from the
        first model.
      mixed: how many entries some models move up and others down.
      opposite: int [n, n], how many entries two models move in opposite directions.
      both: int [n, n], how many entries two models move.
    """

    entries: int
    products: np.ndarray
    mixed: int
    opposite: np.ndarray
    both: np.ndarray

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.entries + other.entries,
            self.products + other.products,
            self.mixed + other.mixed,
            self.opposite + other.opposite,
            self.both + other.both,
        )


def diagnose(models: Sequence[Source], base: Source | None = None) -> dict[str, Any]:
    """Return figures of all entries, of each layer and of each module, JSON-able.

    Args:
      models: n of them, of the same tensors.
      base: what they were trained from, of the same tensors too.

    Returns:
      `all` and, by name, `layers` and `modules`. Each has `entries` and `distance`, [n, n]: the Euclidean
      distance of two models; with a base also `norm`, [n]: that of each model from the base, `cosine`,
      [n, n]: of task vectors (None where one is zero), `conflicts`: the share of entries that some models
      move up and others down (arXiv 2306.01708, section 3), and `opposite`, [n, n]: of the entries that two
      models move, the share that they move in opposite directions.

    Raises:
      AyaError: a file is damaged, or cannot be read.
    """
    whole: Sums | None = None
    layers: dict[str, Sums] = {}
    modules: dict[str, Sums] = {}
    for tensor in models[0].tensors:
        sums = _of_tensor(models, base, tensor)
        whole = sums if whole is None else whole + sums
        for groups, name in ((layers, _layer(tensor)), (modules, _module(tensor))):
            groups[name] = groups[name] + sums if name in groups else sums
    assert whole is not None, "a model has tensors"
    known = base is not None
    return {
        "all": figures(whole, base=known),
        "layers": {name: figures(sums, base=known) for name, sums in layers.items()},
        "modules": {name: figures(sums, base=known) for name, sums in modules.items()},
    }


def figures(sums: Sums, *, base: bool) -> dict[str, Any]:
    """Return the figures of one group of entries; see `diagnose`."""
    squares = np.diag(sums.products)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2 * sums.products, 0.0)
    found: dict[str, Any] = {"entries": sums.entries, "distance": np.sqrt(apart).tolist()}
    if base:
        norms = np.sqrt(squares)
        found |= {
            "norm": norms.tolist(),
            "cosine": _ratio(sums.products, norms[:, None] * norms[None, :]),
            "conflicts": sums.mixed / sums.entries,
            "opposite": _ratio(sums.opposite, sums.both),
        }
    return found


def _ratio(over: np.ndarray, under: np.ndarray) -> list[list[float | None]]:
    return [
        [float(a / b) if b else None for a, b in zip(*rows, strict=True)]
        for rows in zip(over, under, strict=True)
    ]


def _of_tensor(models: Sequence[Source], base: Source | None, tensor: HFTensor) -> Sums:
    size = prod(tensor.part)
    parts = [
        _of_entries(
            [
                each.read(tensor, start, min(start + AT_ONCE, size))
                for each in (*models, *([base] if base is not None else []))
            ],
            len(models),
        )
        for start in range(0, size, AT_ONCE)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _of_entries(entries: Sequence[np.ndarray], count: int) -> Sums:
    """Return the sums of entries of `count` models and, last, of the base if there is one."""
    reference = entries[count if len(entries) > count else 0].astype(np.float32)
    moved = np.stack([each.astype(np.float32) - reference for each in entries[:count]])
    signs = np.sign(moved)
    # Whole numbers below 2 ** 24, which float32 holds exactly.
    agreed = np.rint(signs @ signs.T).astype(np.int64)
    nonzero = np.abs(signs)
    both = np.rint(nonzero @ nonzero.T).astype(np.int64)
    exact = moved.astype(np.float64)
    return Sums(
        entries=moved.shape[1],
        products=exact @ exact.T,
        mixed=int(((moved > 0).any(0) & (moved < 0).any(0)).sum()),
        opposite=(both - agreed) // 2,
        both=both,
    )


def _layer(tensor: HFTensor) -> str:
    if not tensor.index:
        return "outside of the layers"
    stack = "" if tensor.leaf[0] == "layers" else f"{tensor.leaf[0]} "
    return f"{stack}layer {tensor.index[0]}"


def _module(tensor: HFTensor) -> str:
    return "/".join(part for part in tensor.leaf if part not in ("layers", "block"))


def barrier(losses: Mapping[float, float]) -> tuple[float, float]:
    """Return the loss barrier between two models, and the place where it is highest.

    That is how far the loss of `(1 - t) A + t B` is at most above the straight line between the losses of the
    two (arXiv 2110.06296, equation 1; where they are equal it is that of arXiv 1912.05671).

    Args:
      losses: by t, with 0 and 1.
    """
    heights = {t: loss - (1 - t) * losses[0.0] - t * losses[1.0] for t, loss in losses.items()}
    place = max(heights, key=lambda t: heights[t])
    return heights[place], place
