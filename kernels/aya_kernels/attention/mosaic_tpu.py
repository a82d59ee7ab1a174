"""Flash attention as Pallas kernels: blocks of keys under an online softmax, forward and backward.

The score matrix is never made. The forward pass keeps each query's log-sum-exp; the backward pass
makes the probabilities of a block again from it (FlashAttention-2, arXiv 2307.08691, algorithms 1
and 2). Written for Mosaic TPU; on a CPU the same kernels run in interpret mode.

A block of scores is held as [keys, queries]. What belongs to a query (maximum, sum, log-sum-exp,
segment id) is then a row, [1, queries], which Mosaic stores densely and adds to scores as it is;
with the queries first it would be a column, which takes 128 lanes a number.

Shapes: B batch, N query heads, K key heads, G = N / K, T queries, S keys, H head size, all arrays
heads first; bq and bk are the block lengths.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from aya_kernels.attention.inputs import LONGEST_WINDOW, MASKED, Inputs, Options
from aya_kernels.backends import Target, interpreted

# Longer blocks feed the matrix unit better; 512 x 512 float32 scores take 1 MiB of VMEM.
BLOCKS = (512, 256, 128)


class Arrays(NamedTuple):
    """What forward and backward both read: heads first, lengths padded to whole blocks."""

    window: jax.Array  # int32 [1]
    q: jax.Array  # [B, N, T, H]
    k: jax.Array  # [B, K, S, H]
    v: jax.Array  # [B, K, S, H]
    q_ids: jax.Array  # int32 [B, 1, T]
    kv_ids: jax.Array  # int32 [B, S, 1]


class Tiling(NamedTuple):
    """How the lengths are cut into blocks."""

    bq: int
    bk: int
    q_blocks: int
    kv_blocks: int

    def keys_seen(self, i: Any, window: Any, causal: bool) -> tuple[Any, Any]:
        """Return the first and last key block that query block `i` can see."""
        first = jnp.maximum(i * self.bq - window + 1, 0) // self.bk
        reach = (i + 1) * self.bq - 1 + (0 if causal else window - 1)
        last = jnp.minimum(reach // self.bk, self.kv_blocks - 1)
        return jnp.minimum(first, self.kv_blocks - 1), last

    def queries_seeing(self, j: Any, window: Any, causal: bool) -> tuple[Any, Any]:
        """Return the first and last query block that can see key block `j`."""
        reach = j * self.bk - (0 if causal else window - 1)
        first = jnp.maximum(reach, 0) // self.bq
        last = jnp.minimum(((j + 1) * self.bk - 1 + window - 1) // self.bq, self.q_blocks - 1)
        return jnp.minimum(first, self.q_blocks - 1), last


def _block(length: int) -> int:
    return next(block for block in BLOCKS if length % block == 0)


def _tiling(x: Arrays) -> Tiling:
    t, s = x.q.shape[2], x.k.shape[2]
    bq, bk = _block(t), _block(s)
    return Tiling(bq, bk, t // bq, s // bk)


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Return the float32 product of two blocks over the given axis of each."""
    # float32 follows jax_default_matmul_precision; other dtypes have one precision only.
    precision = None if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _scores(
    q: jax.Array, k: jax.Array, mask: jax.Array, o: Options
) -> tuple[jax.Array, jax.Array | float]:
    """Return scores [bk, bq], capped and masked, and the slope of the cap."""
    scores = _dot(k, q, (1, 1)) * o.scale
    slope: jax.Array | float = 1.0
    if o.softcap is not None:
        squashed = jnp.tanh(scores / o.softcap)
        scores, slope = o.softcap * squashed, 1.0 - squashed * squashed
    return jnp.where(mask, scores, MASKED), slope


def _mask(
    q_ids: jax.Array, kv_ids: jax.Array, i: Any, j: Any, window: Any, tiling: Tiling, o: Options
) -> jax.Array:
    """Return bool [bk, bq] for query block `i` and key block `j`; ids are [1, bq] and [bk, 1]."""
    shape = (tiling.bk, tiling.bq)
    queries = i * tiling.bq + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    keys = j * tiling.bk + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    mask = (q_ids == kv_ids) & (q_ids > 0) & (queries - keys < window)
    return mask & ((keys <= queries) if o.causal else (keys - queries < window))


def _forward(  # type: ignore[no-untyped-def]
    o: Options,
    tiling: Tiling,
    window_ref,
    q_ref,
    k_ref,
    v_ref,
    q_ids_ref,
    kv_ids_ref,
    out_ref,
    lse_ref,
    acc_ref,
    top_ref,
    total_ref,
):
    i, j = pl.program_id(2), pl.program_id(3)
    window = window_ref[0]
    first, last = tiling.keys_seen(i, window, o.causal)

    @pl.when(j == 0)
    def _():
        acc_ref[...] = jnp.zeros_like(acc_ref)
        top_ref[...] = jnp.full_like(top_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)

    @pl.when((first <= j) & (j <= last))
    def _():
        mask = _mask(q_ids_ref[...], kv_ids_ref[...], i, j, window, tiling, o)
        scores, _ = _scores(q_ref[...], k_ref[...], mask, o)
        top = top_ref[...]
        new_top = jnp.maximum(top, scores.max(0, keepdims=True))
        weights = jnp.where(mask, jnp.exp(scores - new_top), 0.0)
        shrink = jnp.exp(top - new_top)
        v = v_ref[...]
        acc_ref[...] = acc_ref[...] * shrink + _dot(v, weights.astype(v.dtype), (0, 0))
        total_ref[...] = total_ref[...] * shrink + weights.sum(0, keepdims=True)
        top_ref[...] = new_top

    @pl.when(j == tiling.kv_blocks - 1)
    def _():
        # A query that sees nothing has summed nothing: 0 / 1.
        total = jnp.where(total_ref[...] > 0, total_ref[...], 1.0)
        out_ref[...] = (acc_ref[...] / total).T.astype(out_ref.dtype)
        lse_ref[...] = top_ref[...] + jnp.log(total)


def _weights_and_slope(  # type: ignore[no-untyped-def]
    o: Options, mask, q, k, v, g, lse, delta
) -> tuple[jax.Array, jax.Array]:
    """Return the probabilities [bk, bq] of a block and the gradient to its products q k^T."""
    scores, slope = _scores(q, k, mask, o)
    weights = jnp.where(mask, jnp.exp(scores - lse), 0.0)
    d_scores = weights * (_dot(v, g, (1, 1)) - delta) * slope * o.scale
    return weights, d_scores


def _backward_q(  # type: ignore[no-untyped-def]
    o: Options,
    tiling: Tiling,
    window_ref,
    q_ref,
    k_ref,
    v_ref,
    q_ids_ref,
    kv_ids_ref,
    g_ref,
    lse_ref,
    delta_ref,
    dq_ref,
    acc_ref,
):
    i, j = pl.program_id(2), pl.program_id(3)
    window = window_ref[0]
    first, last = tiling.keys_seen(i, window, o.causal)

    @pl.when(j == 0)
    def _():
        acc_ref[...] = jnp.zeros_like(acc_ref)

    @pl.when((first <= j) & (j <= last))
    def _():
        mask = _mask(q_ids_ref[...], kv_ids_ref[...], i, j, window, tiling, o)
        k = k_ref[...]
        _, d_scores = _weights_and_slope(
            o, mask, q_ref[...], k, v_ref[...], g_ref[...], lse_ref[...], delta_ref[...]
        )
        acc_ref[...] += _dot(d_scores.astype(k.dtype), k, (0, 0))

    @pl.when(j == tiling.kv_blocks - 1)
    def _():
        dq_ref[...] = acc_ref[...].astype(dq_ref.dtype)


def _backward_kv(  # type: ignore[no-untyped-def]
    o: Options,
    tiling: Tiling,
    window_ref,
    q_ref,
    k_ref,
    v_ref,
    q_ids_ref,
    kv_ids_ref,
    g_ref,
    lse_ref,
    delta_ref,
    dk_ref,
    dv_ref,
    dk_acc_ref,
    dv_acc_ref,
):
    j, head, i = pl.program_id(2), pl.program_id(3), pl.program_id(4)
    window = window_ref[0]
    first, last = tiling.queries_seeing(j, window, o.causal)

    @pl.when((head == 0) & (i == 0))
    def _():
        dk_acc_ref[...] = jnp.zeros_like(dk_acc_ref)
        dv_acc_ref[...] = jnp.zeros_like(dv_acc_ref)

    @pl.when((first <= i) & (i <= last))
    def _():
        mask = _mask(q_ids_ref[...], kv_ids_ref[...], i, j, window, tiling, o)
        q, g = q_ref[...], g_ref[...]
        weights, d_scores = _weights_and_slope(
            o, mask, q, k_ref[...], v_ref[...], g, lse_ref[...], delta_ref[...]
        )
        dk_acc_ref[...] += _dot(d_scores.astype(q.dtype), q, (1, 0))
        dv_acc_ref[...] += _dot(weights.astype(g.dtype), g, (1, 0))

    @pl.when((head == pl.num_programs(3) - 1) & (i == tiling.q_blocks - 1))
    def _():
        dk_ref[...] = dk_acc_ref[...].astype(dk_ref.dtype)
        dv_ref[...] = dv_acc_ref[...].astype(dv_ref.dtype)


def _call(  # type: ignore[no-untyped-def]
    kernel, x: Arrays, extra, grid, in_specs, out_specs, out_shape, scratch, reduced: int
):
    """Run a kernel whose last `reduced` grid axes carry sums on from one step to the next."""
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3 + ("arbitrary",) * reduced
        ),
        interpret=interpreted(),
    )(*x, *extra)


def _specs_by_query(x: Arrays, tiling: Tiling, o: Options) -> tuple[list[Any], Any, Any]:
    """Return the specs of q, k, v and ids, and those of a [.., T, H] and a [.., 1, T] array.

    The grid is (B, N, query block, key block). A key block that is not seen is not fetched either:
    its step names the nearest block that is.
    """
    bq, bk = tiling.bq, tiling.bk
    h = x.q.shape[-1]
    groups = x.q.shape[1] // x.k.shape[1]

    def seen(i, j, window):  # type: ignore[no-untyped-def]
        first, last = tiling.keys_seen(i, window[0], o.causal)
        return jnp.clip(j, first, jnp.maximum(first, last))

    query = pl.BlockSpec((None, None, bq, h), lambda b, n, i, j, w: (b, n, i, 0))
    row = pl.BlockSpec((None, None, 1, bq), lambda b, n, i, j, w: (b, n, 0, i))
    key = pl.BlockSpec(
        (None, None, bk, h), lambda b, n, i, j, w: (b, n // groups, seen(i, j, w), 0)
    )
    q_ids = pl.BlockSpec((None, 1, bq), lambda b, n, i, j, w: (b, 0, i))
    kv_ids = pl.BlockSpec((None, bk, 1), lambda b, n, i, j, w: (b, seen(i, j, w), 0))
    return [query, key, key, q_ids, kv_ids], query, row


def _specs_by_key(x: Arrays, tiling: Tiling, o: Options) -> tuple[list[Any], Any, Any]:
    """As `_specs_by_query` for the grid (B, K, key block, head of the group, query block)."""
    bq, bk = tiling.bq, tiling.bk
    h = x.q.shape[-1]
    groups = x.q.shape[1] // x.k.shape[1]

    def seen(j, i, window):  # type: ignore[no-untyped-def]
        first, last = tiling.queries_seeing(j, window[0], o.causal)
        return jnp.clip(i, first, jnp.maximum(first, last))

    query = pl.BlockSpec(
        (None, None, bq, h), lambda b, k, j, g, i, w: (b, k * groups + g, seen(j, i, w), 0)
    )
    row = pl.BlockSpec(
        (None, None, 1, bq), lambda b, k, j, g, i, w: (b, k * groups + g, 0, seen(j, i, w))
    )
    key = pl.BlockSpec((None, None, bk, h), lambda b, k, j, g, i, w: (b, k, j, 0))
    q_ids = pl.BlockSpec((None, 1, bq), lambda b, k, j, g, i, w: (b, 0, seen(j, i, w)))
    kv_ids = pl.BlockSpec((None, bk, 1), lambda b, k, j, g, i, w: (b, j, 0))
    return [query, key, key, q_ids, kv_ids], query, row


def refuses(target: Target, o: Options, x: Inputs) -> str | None:
    """Return why this backend cannot compute the call, or None."""
    if x.q_offset is not None or x.kv_offset is not None:
        return "it has no offsets yet"
    return None


def _arrays(x: Inputs) -> Arrays:
    b = x.q.shape[0]

    def whole_blocks(a: jax.Array) -> jax.Array:
        room = -a.shape[1] % BLOCKS[-1]
        return jnp.pad(a, ((0, 0), (0, room)) + ((0, 0),) * (a.ndim - 2))

    q_ids, kv_ids = x.q_ids, x.kv_ids
    if q_ids is None or kv_ids is None:
        q_ids, kv_ids = (jnp.ones((b, a.shape[1]), jnp.int32) for a in (x.q, x.k))
    window = LONGEST_WINDOW if x.window is None else x.window
    return Arrays(
        jnp.reshape(jnp.asarray(window, jnp.int32), (1,)),
        *(jnp.swapaxes(whole_blocks(a), 1, 2) for a in (x.q, x.k, x.v)),
        whole_blocks(q_ids)[:, None, :],
        whole_blocks(kv_ids)[:, :, None],
    )


def forward(o: Options, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """Return the output and the log-sum-exp; see `flash.flash`."""
    length = x.q.shape[1]
    arrays = _arrays(x)
    tiling = _tiling(arrays)
    b, n, t, h = arrays.q.shape
    in_specs, query, row = _specs_by_query(arrays, tiling, o)
    out, lse = _call(
        partial(_forward, o, tiling),
        arrays,
        (),
        grid=(b, n, tiling.q_blocks, tiling.kv_blocks),
        in_specs=in_specs,
        out_specs=[query, row],
        out_shape=[
            jax.ShapeDtypeStruct(arrays.q.shape, x.q.dtype),
            jax.ShapeDtypeStruct((b, n, 1, t), jnp.float32),
        ],
        scratch=[(h, tiling.bq), (1, tiling.bq), (1, tiling.bq)],
        reduced=1,
    )
    return jnp.swapaxes(out, 1, 2)[:, :length], lse[:, :, 0, :length]


def backward(
    o: Options, inputs: Inputs, lse: jax.Array, delta: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients to q, k and v; see `flash.flash`."""
    x = _arrays(inputs)
    tiling = _tiling(x)
    b, n, t, h = x.q.shape
    kv_heads = x.k.shape[1]
    room = t - g.shape[1]
    g = jnp.swapaxes(jnp.pad(g, ((0, 0), (0, room), (0, 0), (0, 0))), 1, 2)
    lse, delta = (jnp.pad(a, ((0, 0), (0, 0), (0, room)))[:, :, None] for a in (lse, delta))
    in_specs, query, row = _specs_by_query(x, tiling, o)
    dq = _call(
        partial(_backward_q, o, tiling),
        x,
        (g, lse, delta),
        grid=(b, n, tiling.q_blocks, tiling.kv_blocks),
        in_specs=[*in_specs, query, row, row],
        out_specs=query,
        out_shape=jax.ShapeDtypeStruct(x.q.shape, x.q.dtype),
        scratch=[(tiling.bq, h)],
        reduced=1,
    )
    in_specs, query, row = _specs_by_key(x, tiling, o)
    dk, dv = _call(
        partial(_backward_kv, o, tiling),
        x,
        (g, lse, delta),
        grid=(b, kv_heads, tiling.kv_blocks, n // kv_heads, tiling.q_blocks),
        in_specs=[*in_specs, query, row, row],
        out_specs=in_specs[1:3],
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x.k, x.v)],
        scratch=[(tiling.bk, h)] * 2,
        reduced=2,
    )
    dq = jnp.swapaxes(dq, 1, 2)[:, : inputs.q.shape[1]]
    dk, dv = (jnp.swapaxes(a, 1, 2)[:, : inputs.k.shape[1]] for a in (dk, dv))
    return dq, dk, dv
