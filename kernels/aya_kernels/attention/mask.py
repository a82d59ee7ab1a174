"""Which query may see which key."""

import jax
import jax.numpy as jnp

from aya_kernels.attention.inputs import Inputs, Options


def visible(o: Options, x: Inputs) -> jax.Array:
    """Return bool [B or 1, T, S], True where query t may attend to key s.

    With a window w, a query at i sees the keys j with i - w < j <= i where causal, as in Mistral,
    and with |i - j| < w where not. A segment id of 0 is padding: it sees nothing and nothing sees
    it.
    """
    i = jnp.arange(x.q.shape[1])[:, None] + (0 if x.q_offset is None else x.q_offset)
    j = jnp.arange(x.k.shape[1])[None, :] + (0 if x.kv_offset is None else x.kv_offset)
    allowed = pairs_seen(o, i, j, x.window)[None]
    if x.q_ids is not None and x.kv_ids is not None:
        same = x.q_ids[:, :, None] == x.kv_ids[:, None, :]
        allowed = allowed & same & (x.q_ids > 0)[:, :, None]
    return allowed


def pairs_seen(o: Options, i: jax.Array, j: jax.Array, window: jax.Array | None) -> jax.Array:
    """Return bool of the joint shape of the positions `i` and `j`: what order and window allow."""
    allowed = jnp.ones(jnp.broadcast_shapes(i.shape, j.shape), bool)
    if o.causal:
        allowed &= j <= i
    if window is not None:
        allowed &= i - j < window
        if not o.causal:
            allowed &= j - i < window
    return allowed
