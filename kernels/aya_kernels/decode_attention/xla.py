"""decode_attention as plain XLA: blocks of slots under an online softmax, as many as rows have filled.

Grouped queries share the cache without repeating it. A cache of one block has no loop.
"""

import jax
import jax.numpy as jnp

from aya_kernels.attention.inputs import MASKED
from aya_kernels.decode_attention.inputs import Inputs, Options, Seen

# Slots a step, for whole pages the fewest that are as many: a step has little else to do than to
# read them, and the longest row of the batch decides how many there are.
BLOCK = 512


def xla_decode_attention(o: Options, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """As `reference_decode_attention`, with float32 scores and products in the dtype of the cache."""
    b, t, n, h = x.q.shape
    size, kv_heads = x.k_cache.shape[1:3]
    block = min(BLOCK, x.slots) if x.page_table is None else -(-BLOCK // size) * size
    seen = Seen.of(x)
    # The queries of a group and their tokens are the rows of one product.
    q = x.q.reshape(b, t, kv_heads, -1, h).transpose(0, 2, 1, 3, 4).reshape(b, kv_heads, -1, h)

    def fetch(cache: jax.Array, j: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """Return block j of the cache, [B, block, K, H], and the slots in it."""
        if x.page_table is None:
            # The last block may reach back into the one before it, whose slots then count there.
            start = jnp.minimum(j * block, x.slots - block)
            found = jax.lax.dynamic_slice_in_dim(cache, start, block, axis=1)
            slots = start + jnp.arange(block)
            return found, jnp.where(slots >= j * block, slots, -x.slots)
        pages = block // size
        places = j * pages + jnp.arange(pages)
        chosen = jnp.take(x.page_table, places, axis=1, mode="clip")
        found = jnp.take(cache, chosen, axis=0, mode="clip").reshape(b, block, kv_heads, h)
        return found, j * block + jnp.arange(block)

    def step(j: jax.Array | int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        acc, top, total = carry
        keys, slots = fetch(x.k_cache, j)
        values, _ = fetch(x.v_cache, j)
        mask = seen.mask(t, slots) & (slots >= 0)
        # What is not seen may be anything, and nothing times anything is not always nothing.
        values = jnp.where(mask.any(1)[..., None, None], values, 0)
        mask = jnp.repeat(mask, n // kv_heads, axis=1)[:, None]
        scores = jnp.einsum("bkxh,bskh->bkxs", q, keys, preferred_element_type=jnp.float32)
        scores = scores * o.scale
        if o.softcap is not None:
            scores = o.softcap * jnp.tanh(scores / o.softcap)
        new_top = jnp.maximum(top, jnp.where(mask, scores, MASKED).max(-1, keepdims=True))
        weights = jnp.where(mask, jnp.exp(scores - new_top), 0.0)
        shrink = jnp.exp(top - new_top)
        product = jnp.einsum(
            "bkxs,bskh->bkxh",
            weights.astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
        )
        return acc * shrink + product, new_top, total * shrink + weights.sum(-1, keepdims=True)

    rows = q.shape[:3]
    carry = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full((*rows, 1), MASKED),
        jnp.zeros((*rows, 1), jnp.float32),
    )
    if x.slots <= block:
        acc, top, total = step(0, carry)
    else:
        used = jnp.where(seen.high > 0, seen.first(t), x.slots)
        first, last = jax.lax.div(used.min(), block), -(-seen.high.max() // block)
        acc, top, total = jax.lax.fori_loop(first, last, step, carry)
    total = jnp.where(total > 0, total, 1.0)
    out = (acc / total).reshape(b, kv_heads, t, -1, h).transpose(0, 2, 1, 3, 4)
    lse = (top + jnp.log(total)).reshape(b, kv_heads, t, -1).swapaxes(2, 3)
    return out.reshape(x.q.shape).astype(x.q.dtype), lse.reshape(b, n, t)
