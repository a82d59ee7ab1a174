"""Flash attention as Pallas kernels: blocks of keys under an online softmax, forward and backward.

The score matrix is never made. The forward pass keeps each row's log-sum-exp; the backward pass
makes the probabilities of a block again from it (FlashAttention-2, arXiv 2307.08691, algorithms 1
and 2). On a CPU the same kernels run in interpret mode.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from aya_kernels.attention.mask import SegmentIds

MASKED = -1e30
BLOCK = 128


class Options(NamedTuple):
    """What does not change within a call; hashable."""

    causal: bool
    window: int | None
    softcap: float | None
    scale: float


def _scores(
    q: jax.Array, k: jax.Array, q_ids: jax.Array, kv_ids: jax.Array, i: Any, j: Any, o: Options
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return raw (capped) scores [Tb, Sb], the derivative of the cap, and the mask of a block."""
    scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32) * o.scale
    slope = jnp.ones_like(scores)
    if o.softcap is not None:
        squashed = jnp.tanh(scores / o.softcap)
        scores, slope = o.softcap * squashed, 1.0 - squashed * squashed
    rows = i * BLOCK + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    columns = j * BLOCK + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    mask = (q_ids[:, None] == kv_ids[None, :]) & (q_ids[:, None] > 0)
    if o.causal:
        mask &= columns <= rows
    if o.window is not None:
        mask &= (columns > rows - o.window) & (columns < rows + o.window)
    return scores, slope, mask


def _key_blocks(i: Any, count: int, o: Options) -> tuple[Any, Any]:
    """Return the range of key blocks that queries of block i can see."""
    first, last = 0, count
    if o.causal:
        last = jnp.minimum(count, i + 1)
    if o.window is not None:
        first = jnp.maximum(0, (i * BLOCK - o.window + 1) // BLOCK)
        last = jnp.minimum(last, ((i + 1) * BLOCK + o.window - 2) // BLOCK + 1)
    return first, last


def _query_blocks(j: Any, count: int, o: Options) -> tuple[Any, Any]:
    """Return the range of query blocks that see keys of block j."""
    first, last = 0, count
    if o.causal:
        first = j
    if o.window is not None:
        first = jnp.maximum(first, (j * BLOCK - o.window + 1) // BLOCK)
        last = jnp.minimum(count, ((j + 1) * BLOCK + o.window - 2) // BLOCK + 1)
    return jnp.maximum(first, 0), last


def _forward(o: Options, q_ref, k_ref, v_ref, q_ids_ref, kv_ids_ref, out_ref, lse_ref):  # type: ignore[no-untyped-def]
    i = pl.program_id(2)
    q = q_ref[0, 0]
    q_ids = q_ids_ref[0]
    blocks = k_ref.shape[2] // BLOCK

    def body(j: Any, carry: Any) -> Any:
        acc, top, total = carry
        keys = pl.ds(j * BLOCK, BLOCK)
        k, v = k_ref[0, 0, keys, :], v_ref[0, 0, keys, :]
        scores, _, mask = _scores(q, k, q_ids, kv_ids_ref[0, keys], i, j, o)
        scores = jnp.where(mask, scores, MASKED)
        new_top = jnp.maximum(top, scores.max(-1))
        weights = jnp.where(mask, jnp.exp(scores - new_top[:, None]), 0.0)
        shrink = jnp.exp(top - new_top)
        acc = acc * shrink[:, None] + jnp.dot(
            weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return acc, new_top, total * shrink + weights.sum(-1)

    start = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:1], MASKED, jnp.float32),
        jnp.zeros(q.shape[:1], jnp.float32),
    )
    acc, top, total = jax.lax.fori_loop(*_key_blocks(i, blocks, o), body, start)
    safe = jnp.where(total > 0, total, 1.0)
    out_ref[0, 0] = (acc / safe[:, None]).astype(out_ref.dtype)
    lse_ref[0, 0] = top + jnp.log(safe)


def _probabilities(scores: jax.Array, mask: jax.Array, lse: jax.Array) -> jax.Array:
    return jnp.where(mask, jnp.exp(scores - lse[:, None]), 0.0)


def _backward_q(  # type: ignore[no-untyped-def]
    o: Options, q_ref, k_ref, v_ref, q_ids_ref, kv_ids_ref, g_ref, lse_ref, delta_ref, dq_ref
):
    i = pl.program_id(2)
    q, g = q_ref[0, 0], g_ref[0, 0]
    lse, delta, q_ids = lse_ref[0, 0], delta_ref[0, 0], q_ids_ref[0]

    def body(j: Any, dq: jax.Array) -> jax.Array:
        keys = pl.ds(j * BLOCK, BLOCK)
        k, v = k_ref[0, 0, keys, :], v_ref[0, 0, keys, :]
        scores, slope, mask = _scores(q, k, q_ids, kv_ids_ref[0, keys], i, j, o)
        p = _probabilities(scores, mask, lse)
        dp = jnp.dot(g, v.T, preferred_element_type=jnp.float32)
        ds = p * (dp - delta[:, None]) * slope * o.scale
        return dq + jnp.dot(ds.astype(k.dtype), k, preferred_element_type=jnp.float32)

    blocks = k_ref.shape[2] // BLOCK
    dq = jax.lax.fori_loop(*_key_blocks(i, blocks, o), body, jnp.zeros(q.shape, jnp.float32))
    dq_ref[0, 0] = dq.astype(dq_ref.dtype)


def _backward_kv(  # type: ignore[no-untyped-def]
    o: Options,
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
):
    j = pl.program_id(2)
    k, v, kv_ids = k_ref[0, 0], v_ref[0, 0], kv_ids_ref[0]

    def body(i: Any, carry: Any) -> Any:
        dk, dv = carry
        rows = pl.ds(i * BLOCK, BLOCK)
        q, g = q_ref[0, 0, rows, :], g_ref[0, 0, rows, :]
        scores, slope, mask = _scores(q, k, q_ids_ref[0, rows], kv_ids, i, j, o)
        p = _probabilities(scores, mask, lse_ref[0, 0, rows])
        dv = dv + jnp.dot(p.T.astype(g.dtype), g, preferred_element_type=jnp.float32)
        dp = jnp.dot(g, v.T, preferred_element_type=jnp.float32)
        ds = p * (dp - delta_ref[0, 0, rows][:, None]) * slope * o.scale
        return dk + jnp.dot(ds.T.astype(q.dtype), q, preferred_element_type=jnp.float32), dv

    zeros = jnp.zeros(k.shape, jnp.float32)
    blocks = q_ref.shape[2] // BLOCK
    dk, dv = jax.lax.fori_loop(*_query_blocks(j, blocks, o), body, (zeros, zeros))
    dk_ref[0, 0], dv_ref[0, 0] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)


def _interpret() -> bool:
    return jax.default_backend() == "cpu"


def _call_forward(q, k, v, q_ids, kv_ids, o: Options):  # type: ignore[no-untyped-def]
    b, n, t, h = q.shape
    groups = n // k.shape[1]
    s = k.shape[2]
    query = pl.BlockSpec((1, 1, BLOCK, h), lambda b, n, i: (b, n, i, 0))
    whole = pl.BlockSpec((1, 1, s, h), lambda b, n, i: (b, n // groups, 0, 0))
    return pl.pallas_call(
        partial(_forward, o),
        grid=(b, n, t // BLOCK),
        in_specs=[
            query,
            whole,
            whole,
            pl.BlockSpec((1, BLOCK), lambda b, n, i: (b, i)),
            pl.BlockSpec((1, s), lambda b, n, i: (b, 0)),
        ],
        out_specs=[query, pl.BlockSpec((1, 1, BLOCK), lambda b, n, i: (b, n, i))],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((b, n, t), jnp.float32),
        ],
        interpret=_interpret(),
    )(q, k, v, q_ids, kv_ids)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _flash(q, k, v, q_ids, kv_ids, o: Options):  # type: ignore[no-untyped-def]
    return _call_forward(q, k, v, q_ids, kv_ids, o)[0]


def _flash_forward(q, k, v, q_ids, kv_ids, o: Options):  # type: ignore[no-untyped-def]
    out, lse = _call_forward(q, k, v, q_ids, kv_ids, o)
    return out, (q, k, v, q_ids, kv_ids, out, lse)


def _flash_backward(o: Options, kept, g):  # type: ignore[no-untyped-def]
    q, k, v, q_ids, kv_ids, out, lse = kept
    b, n, t, h = q.shape
    kv_heads, s = k.shape[1], k.shape[2]
    groups = n // kv_heads
    delta = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    query = pl.BlockSpec((1, 1, BLOCK, h), lambda b, n, i: (b, n, i, 0))
    row = pl.BlockSpec((1, 1, BLOCK), lambda b, n, i: (b, n, i))
    all_keys = pl.BlockSpec((1, 1, s, h), lambda b, n, i: (b, n // groups, 0, 0))
    dq = pl.pallas_call(
        partial(_backward_q, o),
        grid=(b, n, t // BLOCK),
        in_specs=[
            query,
            all_keys,
            all_keys,
            pl.BlockSpec((1, BLOCK), lambda b, n, i: (b, i)),
            pl.BlockSpec((1, s), lambda b, n, i: (b, 0)),
            query,
            row,
            row,
        ],
        out_specs=query,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        interpret=_interpret(),
    )(q, k, v, q_ids, kv_ids, g, lse, delta)
    all_queries = pl.BlockSpec((1, 1, t, h), lambda b, n, j: (b, n, 0, 0))
    all_rows = pl.BlockSpec((1, 1, t), lambda b, n, j: (b, n, 0))
    keys = pl.BlockSpec((1, 1, BLOCK, h), lambda b, n, j: (b, n // groups, j, 0))
    each = pl.BlockSpec((1, 1, BLOCK, h), lambda b, n, j: (b, n, j, 0))
    # One gradient a query head, summed over the heads that share a key head.
    dk, dv = pl.pallas_call(
        partial(_backward_kv, o),
        grid=(b, n, s // BLOCK),
        in_specs=[
            all_queries,
            keys,
            keys,
            pl.BlockSpec((1, t), lambda b, n, j: (b, 0)),
            pl.BlockSpec((1, BLOCK), lambda b, n, j: (b, j)),
            all_queries,
            all_rows,
            all_rows,
        ],
        out_specs=[each, each],
        out_shape=[jax.ShapeDtypeStruct((b, n, s, h), jnp.float32)] * 2,
        interpret=_interpret(),
    )(q, k, v, q_ids, kv_ids, g, lse, delta)
    shape = (b, kv_heads, groups, s, h)
    dk, dv = (x.reshape(shape).sum(2).astype(k.dtype) for x in (dk, dv))
    return dq, dk, dv, None, None


_flash.defvjp(_flash_forward, _flash_backward)


def pallas_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    segment_ids: SegmentIds | None,
    window: int | None,
    softcap: float | None,
    scale: float,
) -> jax.Array:
    """As `reference_attention`. Lengths are padded to the block with segment id 0."""
    b, t = q.shape[:2]
    s = k.shape[1]
    if segment_ids is None:
        q_ids, kv_ids = jnp.ones((b, t), jnp.int32), jnp.ones((b, s), jnp.int32)
    else:
        q_ids, kv_ids = (ids.astype(jnp.int32) for ids in segment_ids)

    def to_blocks(x: jax.Array) -> jax.Array:
        room = -x.shape[1] % BLOCK
        return jnp.pad(x, ((0, 0), (0, room)) + ((0, 0),) * (x.ndim - 2))

    heads_first = [jnp.swapaxes(to_blocks(x), 1, 2) for x in (q, k, v)]
    options = Options(causal, window, softcap, float(scale))
    out = _flash(*heads_first, to_blocks(q_ids), to_blocks(kv_ids), options)
    return jnp.swapaxes(out, 1, 2)[:, :t]
