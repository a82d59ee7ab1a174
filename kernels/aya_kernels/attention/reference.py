"""The definition of attention in a few lines of jax.numpy, in float32."""

import jax
import jax.numpy as jnp

from aya_kernels.attention.inputs import MASKED, Inputs, Options
from aya_kernels.attention.mask import visible


def reference_attention(o: Options, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """`softmax(softcap(scale * q k^T) + mask) v` and the log-sum-exp of the scores.

    Returns [B, T, N, H] in the dtype of q and float32 [B, N, T], as `api.attention` says.
    """
    groups = x.q.shape[2] // x.k.shape[2]
    q, k, v = (array.astype(jnp.float32) for array in x[:3])
    k, v = (jnp.repeat(array, groups, axis=2) for array in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") * o.scale
    if o.softcap is not None:
        scores = o.softcap * jnp.tanh(scores / o.softcap)
    mask = visible(o, x)[:, None]
    # A row that sees nothing is a softmax of no terms; its weights are defined as zeros.
    seeing = mask.any(-1)
    scores = jnp.where(mask, scores, MASKED)
    weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0.0)
    lse = jnp.where(seeing, jax.nn.logsumexp(scores, axis=-1), MASKED)
    out = jnp.einsum("bnts,bsnh->btnh", weights, v, precision="highest")
    return out.astype(x.q.dtype), lse
