"""The definition of decode_attention: attention of a few queries over the filled part of a cache."""

import jax
import jax.numpy as jnp

from aya_kernels.attention.inputs import MASKED
from aya_kernels.decode_attention.inputs import Inputs, Options, Seen


def reference_decode_attention(o: Options, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """`softmax(softcap(scale * q k^T)) v` over the slots that are seen, and the log-sum-exp.

    Returns [B, T, N, H] in the dtype of q and float32 [B, N, T], as `api.decode_attention` says.
    """
    b, t, n = x.q.shape[:3]
    keys, values = (
        a
        if x.page_table is None
        else jnp.take(a, x.page_table, axis=0, mode="clip").reshape(b, -1, *a.shape[2:])
        for a in (x.k_cache, x.v_cache)
    )
    groups = n // keys.shape[2]
    keys, values = (jnp.repeat(a.astype(jnp.float32), groups, axis=2) for a in (keys, values))
    q = x.q.astype(jnp.float32)
    scores = jnp.einsum("btnh,bsnh->bnts", q, keys, precision="highest") * o.scale
    if o.softcap is not None:
        scores = o.softcap * jnp.tanh(scores / o.softcap)
    mask = Seen.of(x).mask(t, jnp.arange(x.slots))
    # What is not seen may be anything, and nothing times anything is not always nothing.
    values = jnp.where(mask.any(1)[..., None, None], values, 0.0)
    mask = mask[:, None]
    scores = jnp.where(mask, scores, MASKED)
    weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0.0)
    lse = jnp.where(mask.any(-1), jax.nn.logsumexp(scores, axis=-1), MASKED)
    out = jnp.einsum("bnts,bsnh->btnh", weights, values, precision="highest")
    return out.astype(x.q.dtype), lse
