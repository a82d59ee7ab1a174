"""The definition of attention in a few lines of jax.numpy, in float32."""

import jax
import jax.numpy as jnp

from aya_kernels.attention.mask import SegmentIds, Window, visible


def reference_attention(
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
    """`softmax(softcap(scale * q k^T) + mask) v`; q [B, T, N, H], k and v [B, S, K, H].

    Returns [B, T, N, H] in the dtype of q; arguments as in `api.attention`.
    """
    groups = q.shape[2] // k.shape[2]
    k32 = jnp.repeat(k.astype(jnp.float32), groups, axis=2)
    v32 = jnp.repeat(v.astype(jnp.float32), groups, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q.astype(jnp.float32), k32, precision="highest") * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = visible(q.shape[1], k.shape[1], causal=causal, segment_ids=segment_ids, window=window)[
        :, None
    ]
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    # A row that sees nothing is a softmax of no terms; its weights are defined as zeros.
    weights = jnp.where(mask.any(-1, keepdims=True), weights, 0.0)
    out = jnp.einsum("bnts,bsnh->btnh", weights, v32, precision="highest")
    return out.astype(q.dtype)
