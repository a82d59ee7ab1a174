"""Methods on the models' differences from a base: what stays of each, and what is made of all of them.

Of each model's difference only some entries stay: the largest (TIES), all but the largest and the smallest
(Breadcrumbs), drawn ones (DARE), or drawn ones of which the large have a better chance (DELLA). What is left is
added up, or first agrees on a sign (TIES).
"""

import hashlib
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.merging.methods.combine import ZERO, is_one, within
from aya_jax.merging.methods.kinds import Block, Entries, Settings, Tensor
from aya_jax.merging.methods.ranks import HIGHEST, LOWEST, magnitudes

# Numbers are drawn for so many entries at once, from a multiple of that number on.
DRAWN = 1 << 16
# Entries of rows that are ranked at once.
RANKED = 1 << 17

# Of one model: the least and the greatest magnitude of the entries that stay, as the bits of float32.
Interval = tuple[int, int]
NONE: Interval = (HIGHEST, LOWEST)
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
) -> jax.Array:
    """Return `base + lambda m`, with m what the models' kept differences are merged into, [n] in `tensor.dtype`.

    Without election `m = sum_i w_i d_i`, with `normalize` over `sum_i w_i`. With it (TIES, arXiv 2306.01708,
    algorithm 1) each entry's sign is that of `sum_i w_i d_i`, and m the sum of the `w_i d_i` of that sign, with
    `normalize` over the sum of their weights: the disjoint mean.

    A mean (see `_is_mean`) is never outside of what is averaged, the base's entry standing in for what does not
    stay: equal models of which all stays are themselves.
    """
    assert block.base is not None
    mean = _is_mean(s, elect=elect) and (kept is by_rank or not s.rescale or min(s.density) >= 1.0)
    # A weight of 0 leaves its model out, whatever its entries are.
    there = [i for i, weight in enumerate(s.weights) if weight != 0.0]
    if not there:
        return jnp.asarray(block.base, tensor.dtype)
    stays = kept(s, tensor, seed, measured, block)
    return _merged(
        tuple(block.leaves[i] for i in there),
        block.base,
        tuple(stays[i] for i in there),
        tuple(np.float32(s.weights[i]) for i in there),
        np.float32(s.scale),
        elect=elect,
        normalize=s.normalize,
        mean=mean,
        dtype=tensor.dtype,
    )


def _is_mean(s: Settings, *, elect: bool) -> bool:
    """Whether weights and scale make a mean of what agrees (elected and normalised), or of all models."""
    total = math.fsum(s.weights)
    if s.normalize and (elect or abs(total) >= ZERO):
        total = 1.0
    return min(s.weights) >= 0.0 and is_one(s.scale * total)


@partial(jax.jit, static_argnames=("elect", "normalize", "mean", "dtype"))
def _merged(
    leaves: tuple[jax.Array, ...],
    base: jax.Array,
    stays: tuple[Any, ...],
    weights: tuple[jax.Array, ...],
    scale: jax.Array,
    *,
    elect: bool,
    normalize: bool,
    mean: bool,
    dtype: np.dtype,
) -> jax.Array:
    origin = base.astype(jnp.float32)
    values = [leaf.astype(jnp.float32) for leaf in leaves]
    terms = []
    for value, stay, weight in zip(values, stays, weights, strict=True):
        delta = value - origin
        if isinstance(stay, tuple):
            bits = jax.lax.bitcast_convert_type(jnp.abs(delta), jnp.uint32)
            least, most = stay
            delta = jnp.where((least <= bits) & (bits <= most), delta, 0.0)
        else:
            delta = delta * stay
        terms.append(weight * delta)
    if not elect:
        mixed = sum(terms[1:], terms[0])
        divisor = sum(weights[1:], weights[0])
        small = jnp.abs(divisor) < ZERO
        counts = [term != 0 for term in terms]
    else:
        sign = jnp.where(sum(terms[1:], terms[0]) >= 0, 1.0, -1.0)
        counts = [jnp.sign(term) == sign for term in terms]
        voices = [jnp.where(yes, term, 0.0) for yes, term in zip(counts, terms, strict=True)]
        mixed = sum(voices[1:], voices[0])
        shares = [jnp.where(yes, w, 0.0) for yes, w in zip(counts, weights, strict=True)]
        divisor = sum(shares[1:], shares[0])
        small = divisor == 0
    if normalize:
        mixed = mixed / jnp.where(small, 1.0, divisor)
    merged = origin + scale * mixed
    if mean:
        there = [jnp.where(yes, v, origin) for yes, v in zip(counts, values, strict=True)]
        merged = within(merged, there)
    return merged.astype(dtype)


# Which entries stay by their ranks.


def largest(s: Settings, tensor: Tensor, entries: Entries) -> tuple[Interval, ...]:
    """Those as large as the one of rank `int(density n)`, or of rank 1, of a tensor's n differences (TIES).

    mergekit counts by tensor, the paper over the whole model. Entries of equal magnitude stay together, as in the
    paper's code; mergekit lets chance choose between them.
    """
    size = math.prod(tensor.shape)
    return _intervals(tensor, entries, [(1, max(1, int(d * size))) for d in s.density])


def middling(s: Settings, tensor: Tensor, entries: Entries) -> tuple[Interval, ...]:
    """Without the `int(gamma n)` largest, the `int(density n)` largest (Breadcrumbs, arXiv 2312.06795, equation 2).

    Where there are not so many, fewer of the largest are left out. Entries of equal magnitude stay together.
    """
    size = math.prod(tensor.shape)
    ranks = []
    for density, gamma in zip(s.density, s.gamma, strict=True):
        count, outliers = int(density * size), int(gamma * size)
        first = min(outliers, size - count)
        ranks.append((first + 1, first + count) if density < 1.0 else (1, size))
    return _intervals(tensor, entries, ranks)


def _intervals(
    tensor: Tensor, entries: Entries, ranks: list[tuple[int, int]]
) -> tuple[Interval, ...]:
    """Return of each model the magnitudes that its first and last rank of those that stay are between."""
    size = math.prod(tensor.shape)
    # The greatest and the least of all need no search.
    asked = [
        [rank for rank, end in ((first, 1), (last, size)) if rank != end and first <= last]
        for first, last in ranks
    ]
    intervals = []
    for (first, last), found in zip(ranks, magnitudes(size, asked, entries), strict=True):
        if first > last:
            intervals.append(NONE)
            continue
        most = HIGHEST if first == 1 else found[0]
        intervals.append((LOWEST if last == size else found[-1], most))
    return tuple(intervals)


def by_rank(
    s: Settings, tensor: Tensor, seed: int, measured: tuple[Interval, ...], block: Block
) -> tuple[Any, ...]:
    """Return what `_merged` takes of intervals of ranks."""
    return tuple(tuple(map(np.uint32, each)) for each in measured)


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

    def factor(model: int, density: float) -> Any:
        if density >= 1.0:
            return np.float32(1.0)
        stays = draws(seed, tensor, model, block.start, block.stop) < density * 2.0**32
        return stays * np.float32(1.0 / density if s.rescale else 1.0)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return tuple(threads.map(factor, range(len(s.density)), s.density))


def chances(s: Settings, tensor: Tensor, model: int, block: Block) -> np.ndarray:
    """Return float32 [n]: the chance that each entry stays (DELLA, arXiv 2406.11617, section 3.1).

    `density - epsilon` for the smallest of a row, `density + epsilon` for the largest, evenly between them by rank.
    """
    assert block.base is not None
    columns = tensor.shape[-1]
    bits = np.abs(block.leaves[model].astype(np.float32) - block.base.astype(np.float32))
    out = np.empty_like(bits)
    shape = (columns, -1) if tensor.transpose else (-1, columns)
    sizes, of_rank = bits.view(np.uint32).reshape(shape), out.reshape(shape)
    if tensor.transpose:
        sizes, of_rank = sizes.T, of_rank.T
    share = np.arange(columns, dtype=np.float32) / np.float32(max(1, columns - 1))
    least, range_ = s.density[model] - s.epsilon[model], 2 * s.epsilon[model]
    chance = np.float32(least) + share * np.float32(range_)
    places = np.arange(columns, dtype=np.uint64)

    def rank(rows: slice) -> None:
        # Sorting both in one number is quicker than sorting one by the other, and equal ones stay in order.
        keys = sizes[rows].astype(np.uint64) << np.uint64(32) | places
        keys.sort(axis=1)
        order = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
        np.put_along_axis(of_rank[rows], order, chance[None], axis=1)

    step = max(1, RANKED // columns)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(rank, (slice(i, i + step) for i in range(0, len(sizes), step))))
    return out


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
        stays = draws(seed, tensor, model, block.start, block.stop) < np.ldexp(chance, 32)
        factors.append(stays / chance if s.rescale else stays.astype(np.float32))
    return tuple(factors)
