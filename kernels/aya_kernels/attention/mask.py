"""Which query may see which key."""

import jax
import jax.numpy as jnp

SegmentIds = tuple[jax.Array, jax.Array]
Window = int | jax.Array | None

# Stands for minus infinity: finite, so that a row with nothing to see never makes inf - inf.
MASKED = -1e30


def visible(
    q_length: int,
    kv_length: int,
    *,
    causal: bool,
    segment_ids: SegmentIds | None,
    window: Window,
) -> jax.Array:
    """Return bool [B or 1, T, S], True where query t may attend to key s.

    With a window w, a query at i sees the keys j with i - w < j <= i where causal, as in Mistral,
    and with |i - j| < w where not. A segment id of 0 is padding: it sees nothing and nothing sees
    it.
    """
    i = jnp.arange(q_length)[:, None]
    j = jnp.arange(kv_length)[None, :]
    allowed = jnp.ones((q_length, kv_length), bool)
    if causal:
        allowed &= j <= i
    if window is not None:
        allowed &= jnp.abs(i - j) < window
    allowed = allowed[None]
    if segment_ids is not None:
        q_ids, kv_ids = segment_ids
        same = q_ids[:, :, None] == kv_ids[:, None, :]
        allowed = allowed & same & (q_ids > 0)[:, :, None]
    return allowed
