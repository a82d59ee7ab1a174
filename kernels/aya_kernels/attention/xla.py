"""Attention as plain XLA: the queries of a group become rows of one product, keys unrepeated."""

import jax
import jax.numpy as jnp

from aya_kernels.attention.mask import MASKED, SegmentIds, Window, visible


def xla_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    segment_ids: SegmentIds | None,
    window: Window,
    softcap: float | None,
    scale: float,
) -> jax.Array:
    """As `reference_attention`, with float32 scores and products in the dtype of the inputs."""
    b, t, n, h = q.shape
    s, kv_heads = k.shape[1:3]
    groups = n // kv_heads
    # Heads first, the rows of a group folded together: one plain batched matrix product.
    q = q.reshape(b, t, kv_heads, groups, h).transpose(0, 2, 3, 1, 4)
    q = q.reshape(b, kv_heads, groups * t, h)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    scores = jnp.einsum("bkxh,bksh->bkxs", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(b, kv_heads, groups, t, s) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = visible(t, s, causal=causal, segment_ids=segment_ids, window=window)[:, None, None]
    scores = jnp.where(mask, scores, MASKED)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - top), 0.0)
    total = weights.sum(-1)[..., None]
    # Dividing after the product touches H columns a row in place of S.
    out = jnp.einsum(
        "bkxs,bksh->bkxh",
        weights.reshape(b, kv_heads, groups * t, s).astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
    ).reshape(b, kv_heads, groups, t, h)
    out = out / jnp.where(total > 0, total, 1.0)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h).astype(q.dtype)
