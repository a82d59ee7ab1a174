"""The definition of decode_attention: attention of one query over the filled part of a cache."""

import jax
import jax.numpy as jnp


def reference_decode_attention(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    lengths: jax.Array,
    *,
    window: int | jax.Array | None,
    softcap: float | None,
    scale: float,
) -> jax.Array:
    """q [B, N, H]; caches [B, S, K, H]; row b sees slots lengths[b] - window .. lengths[b] - 1.

    Returns [B, N, H] in the dtype of q; arguments as in `api.decode_attention`.
    """
    groups = q.shape[1] // k_cache.shape[2]
    keys = jnp.repeat(k_cache.astype(jnp.float32), groups, axis=2)
    values = jnp.repeat(v_cache.astype(jnp.float32), groups, axis=2)
    scores = jnp.einsum("bnh,bsnh->bns", q.astype(jnp.float32), keys, precision="highest") * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    slots = jnp.arange(keys.shape[1])
    mask = slots < lengths[:, None]
    if window is not None:
        mask &= slots >= lengths[:, None] - window
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    weights = jnp.where(mask.any(-1)[:, None, None], weights, 0.0)
    return jnp.einsum("bns,bsnh->bnh", weights, values, precision="highest").astype(q.dtype)
