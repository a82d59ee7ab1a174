"""Attention as plain XLA: whole where the scores are small, and otherwise a block at a time.

The queries of a group become rows of one product, so that keys are never repeated. Scores are float32
and products in the dtype of the inputs.

Shapes: B batch, N query heads, K key heads, G = N / K, T queries, S keys, H head size; heads come first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from aya_kernels.attention.blocks import visible_blocks
from aya_kernels.attention.flash import Pair, flash
from aya_kernels.attention.inputs import MASKED, Inputs, Options
from aya_kernels.attention.mask import pairs_seen, visible

# Up to this length a row's scores are made whole: one product is faster than a loop over blocks.
WHOLE = 512
# Scores of a block over the batch and the heads, at most: 64 MiB of float32.
BLOCK_ELEMENTS = 1 << 24


def xla_attention(o: Options, x: Inputs) -> Pair:
    """As `reference_attention`; beyond `WHOLE` queries or keys the score matrix is never made."""
    whole = max(x.q.shape[1], x.k.shape[1]) <= WHOLE
    return _whole(o, x) if whole else _blockwise(o, x)


def _heads_first(x: jax.Array, kv_heads: int) -> jax.Array:
    """Return [B, K, G, T, H] of [B, T, N, H]."""
    b, t, n, h = x.shape
    return x.reshape(b, t, kv_heads, n // kv_heads, h).transpose(0, 2, 3, 1, 4)


def _heads_last(x: jax.Array, length: int) -> jax.Array:
    """Return [B, T, N, H] of [B, K, G, T or more, H]."""
    b, k, g, t, h = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(b, t, k * g, h)[:, :length]


def _scores(o: Options, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array | float]:
    """Return the capped scores [B, K, G, T, S] of q [B, K, G, T, H] and k [B, K, S, H], and the cap's
    slope."""
    b, kv_heads, groups, t, h = q.shape
    rows = q.reshape(b, kv_heads, groups * t, h)
    scores = jnp.einsum("bkxh,bksh->bkxs", rows, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(b, kv_heads, groups, t, k.shape[2]) * o.scale
    if o.softcap is None:
        return scores, 1.0
    squashed = jnp.tanh(scores / o.softcap)
    return o.softcap * squashed, 1.0 - squashed * squashed


def _times(weights: jax.Array, v: jax.Array) -> jax.Array:
    """Return float32 [B, K, G, T, H] of weights [B, K, G, T, S] and v [B, K, S, H]."""
    b, kv_heads, groups, t, s = weights.shape
    rows = weights.reshape(b, kv_heads, groups * t, s).astype(v.dtype)
    out = jnp.einsum("bkxs,bksh->bkxh", rows, v, preferred_element_type=jnp.float32)
    return out.reshape(b, kv_heads, groups, t, v.shape[3])


def _whole(o: Options, x: Inputs) -> Pair:
    b, t, n, _ = x.q.shape
    k, v = (jnp.swapaxes(array, 1, 2) for array in (x.k, x.v))
    scores, _ = _scores(o, _heads_first(x.q, x.k.shape[2]), k)
    mask = visible(o, x)[:, None, None]
    scores = jnp.where(mask, scores, MASKED)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - top), 0.0)
    total = weights.sum(-1)
    total = jnp.where(total > 0, total, 1.0)
    # Dividing after the product touches H columns a row in place of S.
    out = _heads_last(_times(weights, v) / total[..., None], t).astype(x.q.dtype)
    return out, (top[..., 0] + jnp.log(total)).reshape(b, n, t)


class _Blocks(NamedTuple):
    """Heads first, lengths padded to whole blocks; and the blocks that hold anything.

    `pairs` [I * J] numbers the blocks row by row, the `steps` visible ones first; only those are
    computed.
    """

    x: Inputs
    q: jax.Array  # [B, K, G, T, H]
    k: jax.Array  # [B, K, S, H]
    v: jax.Array  # [B, K, S, H]
    q_ids: jax.Array  # int32 [B, T]
    kv_ids: jax.Array  # int32 [B, S]
    bq: int
    bk: int
    pairs: jax.Array
    steps: jax.Array

    def places(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the first row and the first column of the block of this step."""
        columns = self.k.shape[2] // self.bk
        pair = self.pairs[step]
        return pair // columns * self.bq, pair % columns * self.bk

    def scores(
        self, o: Options, row: jax.Array, column: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array | float]:
        """Return a block's scores [B, K, G, bq, bk], its mask and the slope of the cap."""
        i = row + jnp.arange(self.bq)[:, None]
        j = column + jnp.arange(self.bk)[None, :]
        i += 0 if self.x.q_offset is None else self.x.q_offset
        j += 0 if self.x.kv_offset is None else self.x.kv_offset
        q_ids = _cut(self.q_ids, row, self.bq, 1)[:, :, None]
        kv_ids = _cut(self.kv_ids, column, self.bk, 1)[:, None, :]
        mask = pairs_seen(o, i, j, self.x.window) & (q_ids == kv_ids) & (q_ids > 0)
        mask = mask[:, None, None]
        q, k = _cut(self.q, row, self.bq, 3), _cut(self.k, column, self.bk, 2)
        scores, slope = _scores(o, q, k)
        return jnp.where(mask, scores, MASKED), mask, slope


def _cut(x: jax.Array, start: jax.Array, size: int, axis: int) -> jax.Array:
    """Return `size` places of `x` along `axis` from `start` on."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _put(x: jax.Array, part: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part, start, axis)


def _padded(x: jax.Array, length: int, axis: int) -> jax.Array:
    room = [(0, 0)] * x.ndim
    room[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, room)


def _blocks(o: Options, x: Inputs) -> _Blocks:
    b, t, n, _ = x.q.shape
    s, kv_heads = x.k.shape[1:3]
    block = next((c for c in (512, 256) if b * n * c * c <= BLOCK_ELEMENTS), 128)
    bq, bk = min(block, t), min(block, s)
    rows, columns = -(-t // bq) * bq, -(-s // bk) * bk
    some, _ = visible_blocks(o, x, bq, bk)
    some = some.any(0).ravel()
    q_ids, kv_ids = x.q_ids, x.kv_ids
    if q_ids is None or kv_ids is None:
        q_ids, kv_ids = (jnp.ones((1, length), jnp.int32) for length in (t, s))
    k, v = (_padded(jnp.swapaxes(a, 1, 2), columns, 2) for a in (x.k, x.v))
    return _Blocks(
        x,
        _padded(_heads_first(x.q, kv_heads), rows, 3),
        k,
        v,
        _padded(q_ids, rows, 1),
        _padded(kv_ids, columns, 1),
        bq,
        bk,
        jnp.argsort(~some, stable=True),
        some.sum(),
    )


def forward(o: Options, x: Inputs) -> Pair:
    """Return the output and the log-sum-exp; see `flash.flash`."""
    blocks = _blocks(o, x)
    b, t, n, _ = x.q.shape
    # Zeros of the inputs' own kind: within shard_map they vary over the devices as the results do.
    zeros = (blocks.q * 0).astype(jnp.float32)

    def step(
        number: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        row, column = blocks.places(number)
        scores, mask, _ = blocks.scores(o, row, column)
        acc, top, total = (_cut(a, row, blocks.bq, 3) for a in state)
        new_top = jnp.maximum(top, scores.max(-1))
        shrink = jnp.exp(top - new_top)
        weights = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0.0)
        v = _cut(blocks.v, column, blocks.bk, 2)
        new = (
            acc * shrink[..., None] + _times(weights, v),
            new_top,
            total * shrink + weights.sum(-1),
        )
        acc, top, total = (_put(a, part, row, 3) for a, part in zip(state, new, strict=True))
        return acc, top, total

    start = (zeros, zeros[..., 0] + MASKED, zeros[..., 0])
    acc, top, total = jax.lax.fori_loop(0, blocks.steps, step, start)
    total = jnp.where(total > 0, total, 1.0)
    out = _heads_last(acc / total[..., None], t).astype(x.q.dtype)
    return out, (top + jnp.log(total)).reshape(b, n, -1)[:, :, :t]


def backward(
    o: Options, x: Inputs, lse: jax.Array, delta: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients to q, k and v; see `flash.flash`."""
    blocks = _blocks(o, x)
    b, kv_heads, groups, rows, _ = blocks.q.shape
    g = _padded(_heads_first(g, kv_heads), rows, 3)
    lse, delta = (
        _padded(a.reshape(b, kv_heads, groups, -1), rows, 3)[..., None] for a in (lse, delta)
    )

    def step(
        number: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        dq, dk, dv = state
        row, column = blocks.places(number)
        scores, mask, slope = blocks.scores(o, row, column)
        q, g_rows = (_cut(a, row, blocks.bq, 3) for a in (blocks.q, g))
        k, v = (_cut(a, column, blocks.bk, 2) for a in (blocks.k, blocks.v))
        weights = jnp.where(mask, jnp.exp(scores - _cut(lse, row, blocks.bq, 3)), 0.0)
        d_weights = jnp.einsum("bkgth,bksh->bkgts", g_rows, v, preferred_element_type=jnp.float32)
        d_scores = weights * (d_weights - _cut(delta, row, blocks.bq, 3)) * slope * o.scale
        d_scores = d_scores.astype(q.dtype)

        def over_rows(a: jax.Array, c: jax.Array) -> jax.Array:
            a, c = (m.reshape(b, kv_heads, groups * blocks.bq, -1) for m in (a, c))
            return jnp.einsum("bkxs,bkxh->bksh", a, c, preferred_element_type=jnp.float32)

        dq_rows = _cut(dq, row, blocks.bq, 3) + _times(d_scores, k)
        dk_rows = _cut(dk, column, blocks.bk, 2) + over_rows(d_scores, q)
        dv_rows = _cut(dv, column, blocks.bk, 2) + over_rows(weights.astype(g.dtype), g_rows)
        return _put(dq, dq_rows, row, 3), _put(dk, dk_rows, column, 2), _put(dv, dv_rows, column, 2)

    start = tuple((a * 0).astype(jnp.float32) for a in (blocks.q, blocks.k, blocks.v))
    dq, dk, dv = jax.lax.fori_loop(0, blocks.steps, step, start)
    dk, dv = (jnp.swapaxes(a, 1, 2)[:, : x.k.shape[1]].astype(x.k.dtype) for a in (dk, dv))
    return _heads_last(dq, x.q.shape[1]).astype(x.q.dtype), dk, dv


_blockwise = flash(forward, backward)
