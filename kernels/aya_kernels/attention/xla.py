"""Attention as plain XLA: grouped queries share keys without repeating them."""

import jax
import jax.numpy as jnp

from aya_kernels.attention.mask import SegmentIds, visible

# Finite, so that a row with nothing to see gives equal weights (zeroed below) and never NaN.
MASKED = -1e30


def xla_attention(
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
    """As `reference_attention`, with float32 scores and products in the dtype of the inputs."""
    b, t, n, h = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(b, t, kv_heads, n // kv_heads, h)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = visible(t, k.shape[1], causal=causal, segment_ids=segment_ids, window=window)
    mask = mask[:, None, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
    if segment_ids is not None or window is not None:
        weights = jnp.where(mask.any(-1, keepdims=True), weights, 0.0)
    out = jnp.einsum(
        "bkgts,bskh->btkgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return out.reshape(b, t, n, h).astype(q.dtype)
