"""Methods on the models' differences from a base: what stays of each, and what is made of all of them.

Of each model's difference only some entries stay: the largest (TIES), all but the largest and the smallest
(Breadcrumbs), drawn ones (DARE), or drawn ones of which the large have a better chance (DELLA). What is left is
added up, or first agrees on a sign (TIES).
"""

import hashlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.merging.methods.kinds import Block, Blocks, Settings, Tensor
from aya_jax.merging.methods.ranks import ALL, NONE, Top, tops

# Numbers are drawn for so many entries at once, from a multiple of that number on.
DRAWN = 1 << 16
# How many entries are merged at once: what is made on the way stays near the processor.
AT_ONCE = 1 << 20

# Of one model: which of its entries stay, as an interval of ranks: those of the second, without those of the first.
Interval = tuple[Top, Top]
Kept = Callable[[Settings, Tensor, int, Any, Block], tuple[Any, ...]]


def differences(
    s: Settings,
    tensor: Tensor,
    seed: int,
    measured: Any,
    block: Block,
    *,
    kept: Kept,
    elect: bool,
    by_row: bool = False,
) -> jax.Array:
    """Return float32 [n]: `base + lambda m`, with m what the models' kept differences are merged into.

    Without election `m = sum_i w_i d_i`, with `normalize` over `sum_i w_i`. With it (TIES, arXiv 2306.01708,
    algorithm 1) each entry's sign is that of `sum_i w_i d_i`, and m the sum of the `w_i d_i` of that sign, with
    `normalize` over the sum of their weights: the disjoint mean.
    """
    assert block.base is not None
    weights = tuple(np.float32(weight) for weight in s.weights)
    size = AT_ONCE
    if by_row:
        columns = tensor.shape[-1]
        size = math.prod(tensor.shape) if tensor.transpose else max(1, size // columns) * columns
    parts = []
    for piece in block.cut(size):
        stays = kept(s, tensor, seed, measured, piece)
        parts.append(
            _merged(
                piece.leaves,
                piece.base,
                stays,
                weights,
                np.float32(s.scale),
                np.uint32(piece.start),
                elect=elect,
                normalize=s.normalize,
            )
        )
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


@partial(jax.jit, static_argnames=("elect", "normalize"))
def _merged(
    leaves: tuple[jax.Array, ...],
    base: jax.Array,
    stays: tuple[Any, ...],
    weights: tuple[jax.Array, ...],
    scale: jax.Array,
    start: jax.Array,
    *,
    elect: bool,
    normalize: bool,
) -> jax.Array:
    origin = base.astype(jnp.float32)
    places = start + jnp.arange(len(origin), dtype=jnp.uint32)
    terms = []
    for leaf, stay, weight in zip(leaves, stays, weights, strict=True):
        delta = leaf.astype(jnp.float32) - origin
        if isinstance(stay, tuple):
            bits = jax.lax.bitcast_convert_type(jnp.abs(delta), jnp.uint32)
            without, within = (_belongs(bits, places, *top) for top in stay)
            delta = jnp.where(within & ~without, delta, 0.0)
        else:
            delta = delta * stay
        terms.append(weight * delta)
    if not elect:
        mixed = sum(terms[1:], terms[0])
        divisor = sum(weights[1:], weights[0])
        small = jnp.abs(divisor) < 1e-8
    else:
        sign = jnp.where(sum(terms[1:], terms[0]) >= 0, 1.0, -1.0)
        agree = [jnp.sign(term) == sign for term in terms]
        voices = [jnp.where(yes, term, 0.0) for yes, term in zip(agree, terms, strict=True)]
        mixed = sum(voices[1:], voices[0])
        shares = [jnp.where(yes, w, 0.0) for yes, w in zip(agree, weights, strict=True)]
        divisor = sum(shares[1:], shares[0])
        small = divisor == 0
    if normalize:
        mixed = mixed / jnp.where(small, 1.0, divisor)
    return origin + scale * mixed


def _belongs(bits: jax.Array, places: jax.Array, least: jax.Array, last: jax.Array) -> jax.Array:
    return (bits > least) | ((bits == least) & (places <= last))


# Which entries stay by their ranks.


def _intervals(
    tensor: Tensor, blocks: Blocks, bounds: list[tuple[int, int]]
) -> tuple[Interval, ...]:
    """Return of each model the entries from the first rank of its bounds to before the second."""
    found = tops(math.prod(tensor.shape), bounds, blocks)
    return tuple((without, within) for without, within in found)


def largest(s: Settings, tensor: Tensor, blocks: Blocks) -> tuple[Interval, ...]:
    """The `int(density n)` largest of a tensor's n differences (TIES), one at least, as in mergekit.

    The paper takes them over the whole model.
    """
    size = math.prod(tensor.shape)
    counts = [size if d >= 1.0 else max(1, int(d * size)) for d in s.density]
    return _intervals(tensor, blocks, [(0, count) for count in counts])


def middling(s: Settings, tensor: Tensor, blocks: Blocks) -> tuple[Interval, ...]:
    """Without the `int(gamma n)` largest, the `int(density n)` largest (Breadcrumbs, arXiv 2312.06795, equation 2).

    Where there are not so many, fewer of the largest are left out.
    """
    size = math.prod(tensor.shape)
    bounds = []
    for density, gamma in zip(s.density, s.gamma, strict=True):
        count, outliers = int(density * size), int(gamma * size)
        first = min(outliers, size - count)
        bounds.append((first, first + count) if density < 1.0 else (0, size))
    return _intervals(tensor, blocks, bounds)


def by_rank(
    s: Settings, tensor: Tensor, seed: int, measured: tuple[Interval, ...], block: Block
) -> tuple[Any, ...]:
    """Return what `_merged` takes of intervals of ranks."""
    return tuple(tuple(tuple(map(np.uint32, top)) for top in each) for each in measured)


def everything(
    s: Settings, tensor: Tensor, seed: int, measured: None, block: Block
) -> tuple[Any, ...]:
    """All entries stay."""
    return by_rank(s, tensor, seed, ((NONE, ALL),) * len(s.weights), block)


# Which entries stay by lot.


def draws(seed: int, tensor: Tensor, model: int, start: int, stop: int) -> np.ndarray:
    """Return uint32 [stop - start], evenly drawn: what is drawn for an entry follows from its place.

    Philox (Salmon et al. 2011) under a key of (seed, tensor, model); NumPy promises its bits.
    """
    name = f"{seed}\0{tensor.name}\0{model}".encode()
    key = np.frombuffer(hashlib.sha256(name).digest()[:16], np.uint64)
    first = start // DRAWN
    parts = []
    for number in range(first, -(-stop // DRAWN)):
        counter = np.array([0, 0, 0, number], np.uint64)
        raw = np.random.Philox(key=key, counter=counter).random_raw(DRAWN // 2)
        parts.append(raw.astype("<u8").view("<u4"))
    return np.concatenate(parts)[start - first * DRAWN : stop - first * DRAWN]


def drawn(s: Settings, tensor: Tensor, seed: int, measured: None, block: Block) -> tuple[Any, ...]:
    """Each entry stays with chance `density`; with `rescale` it is divided by it (DARE, arXiv 2311.03099, section 3.2).

    mergekit rescales to the L1 norm that the difference had, so that the mean is that of no entry.
    """
    factors: list[Any] = []
    for model, density in enumerate(s.density):
        if density >= 1.0:
            factors.append(np.float32(1.0))
            continue
        stays = draws(seed, tensor, model, block.start, block.stop) < density * 2.0**32
        factors.append(stays * np.float32(1.0 / density if s.rescale else 1.0))
    return tuple(factors)


def chances(s: Settings, tensor: Tensor, model: int, block: Block) -> np.ndarray:
    """Return float32 [n]: the chance that each entry stays (DELLA, arXiv 2406.11617, section 3.1).

    `density - epsilon` for the smallest of a row, `density + epsilon` for the largest, evenly between them by rank.
    """
    assert block.base is not None
    delta = block.leaves[model].astype(np.float32) - block.base.astype(np.float32)
    columns = tensor.shape[-1]
    rows = (
        np.abs(delta).reshape(columns, -1).T
        if tensor.transpose
        else np.abs(delta).reshape(-1, columns)
    )
    ranks = np.empty(rows.shape, np.float32)
    order = np.argsort(rows, axis=1, kind="stable")
    np.put_along_axis(ranks, order, np.arange(columns, dtype=np.float32)[None], axis=1)
    share = ranks / max(1, columns - 1)
    chance = np.float32(s.density[model] - s.epsilon[model]) + share * np.float32(
        2 * s.epsilon[model]
    )
    return (chance.T if tensor.transpose else chance).reshape(-1)


def by_magnitude(
    s: Settings, tensor: Tensor, seed: int, measured: None, block: Block
) -> tuple[Any, ...]:
    """Each entry stays with its own chance, see `chances`; with `rescale` it is divided by it."""
    factors: list[Any] = []
    for model, density in enumerate(s.density):
        if density >= 1.0:
            factors.append(np.float32(1.0))
            continue
        chance = chances(s, tensor, model, block)
        stays = draws(seed, tensor, model, block.start, block.stop) < chance * np.float64(2.0**32)
        factors.append(np.where(stays, 1.0 / chance if s.rescale else 1.0, 0.0).astype(np.float32))
    return tuple(factors)
