"""decode_attention as plain XLA: grouped queries share the cache without repeating it."""

import jax
import jax.numpy as jnp

# Finite, so that a row with nothing to see gives equal weights (zeroed below) and never NaN.
MASKED = -1e30


def xla_decode_attention(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    lengths: jax.Array,
    *,
    window: int | jax.Array | None,
    softcap: float | None,
    scale: float,
) -> jax.Array:
    """As `reference_decode_attention`, with float32 scores."""
    b, n, h = q.shape
    kv_heads = k_cache.shape[2]
    grouped = q.reshape(b, kv_heads, n // kv_heads, h)
    scores = jnp.einsum("bkgh,bskh->bkgs", grouped, k_cache, preferred_element_type=jnp.float32)
    scores = scores * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    slots = jnp.arange(k_cache.shape[1])
    mask = slots < lengths[:, None]
    if window is not None:
        mask &= slots >= lengths[:, None] - window
    mask = mask[:, None, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
    weights = jnp.where(mask.any(-1, keepdims=True), weights, 0.0)
    out = jnp.einsum(
        "bkgs,bskh->bkgh",
        weights.astype(v_cache.dtype),
        v_cache,
        preferred_element_type=jnp.float32,
    )
    return out.reshape(b, n, h).astype(q.dtype)
