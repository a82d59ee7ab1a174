"""Which blocks of the score matrix hold a pair that may be seen, so that the others cost nothing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aya_kernels.attention.inputs import LONGEST_WINDOW, Inputs, Options


def visible_blocks(o: Options, x: Inputs, bq: int, bk: int) -> tuple[jax.Array, jax.Array]:
    """Return for each block of `bq` queries and `bk` keys whether some, and whether every, pair sees.

    `some` is False only where no pair of the block is visible (and exactly there where the segment
    ids of a row are in order, as packing leaves them). `every` is True only where all bq * bk pairs
    are there and visible, so that no mask is needed. The last blocks may be ragged.

    Returns:
      Two bool arrays [B, ceil(T / bq), ceil(S / bk)].
    """
    b, t = x.q.shape[:2]
    s = x.k.shape[1]
    q_first, q_last = _ends(t, bq, x.q_offset)
    k_first, k_last = _ends(s, bk, x.kv_offset)
    q_first, q_last, k_first, k_last = q_first[:, None], q_last[:, None], k_first, k_last
    some = jnp.ones((q_first.shape[0], k_first.shape[0]), bool)
    every = (q_last - q_first == bq - 1) & (k_last - k_first == bk - 1)
    if o.causal:
        some &= k_first <= q_last
        every &= k_last <= q_first
    if x.window is not None:
        some &= q_first - k_last < x.window
        every &= q_last - k_first < x.window
        if not o.causal:
            some &= k_first - q_last < x.window
            every &= k_last - q_first < x.window
    some, every = (jnp.broadcast_to(a[None], (b, *a.shape)) for a in (some, every))
    if x.q_ids is not None and x.kv_ids is not None:
        q_low, q_high, q_one = (a[:, :, None] for a in _segments(x.q_ids, bq))
        k_low, k_high, k_one = (a[:, None, :] for a in _segments(x.kv_ids, bk))
        some &= (q_low <= k_high) & (k_low <= q_high)
        every &= q_one & k_one & (q_low == k_low)
    return some, every & some


class Lists(NamedTuple):
    """The blocks that each row of blocks sees: first those seen whole, then those that need a mask."""

    index: Any  # int32 [B, I, J], each part in order
    whole: Any  # int32 [B, I], how many are seen whole
    count: Any  # int32 [B, I], how many are seen at all

    @classmethod
    def of(cls, some: jax.Array, every: jax.Array) -> "Lists":
        """Return the lists of what `visible_blocks` says (or, for the keys, of its transpose)."""
        rank = jnp.where(every, 0, jnp.where(some, 1, 2))
        index = jnp.argsort(rank, axis=-1, stable=True).astype(jnp.int32)
        return cls(index, every.sum(-1, dtype=jnp.int32), some.sum(-1, dtype=jnp.int32))


def _ends(length: int, block: int, offset: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Return the first and the last position of each block, [blocks]."""
    first = jnp.arange(0, length, block, dtype=jnp.int32)
    start = 0 if offset is None else offset
    return first + start, jnp.minimum(first + block, length) - 1 + start


def _segments(ids: jax.Array, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return each block's lowest and highest segment and whether it is whole one, [B, blocks]."""
    b, length = ids.shape
    blocks = jnp.pad(ids, ((0, 0), (0, -length % block))).reshape(b, -1, block)
    low = jnp.where(blocks > 0, blocks, LONGEST_WINDOW).min(-1)
    return low, blocks.max(-1), blocks.min(-1) == blocks.max(-1)
