"""linear_logprob in chunks of the vocabulary: the logits [T, V] never exist, forward or backward.

The forward pass keeps a running maximum and sum of exponentials over the chunks; the backward pass
makes each chunk's logits again and needs only the log-sum-exp of each token.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

# Columns of logits at once. 4096 keeps matrix units busy; a vocabulary no larger is one chunk.
MOST_COLUMNS = 4096
LEAST_COLUMNS = 1024
# With many tokens fewer columns, so that a chunk of float32 logits stays near 128 MiB.
CHUNK_ELEMENTS = 1 << 25
# Stands for minus infinity: finite, so that exp(top - new_top) is never exp(inf - inf).
MASKED = -1e30

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _chunks(tokens: int, vocabulary: int) -> tuple[int, int]:
    """Return the number of chunks and their columns, at most `vocabulary`, as even as can be."""
    most = min(max(CHUNK_ELEMENTS // max(tokens, 1), LEAST_COLUMNS), MOST_COLUMNS)
    if vocabulary <= most:
        return 1, vocabulary
    count = -(-vocabulary // most)
    columns = -(-vocabulary // count)
    return count, -(-columns // 128) * 128


class _Chunk:
    """Chunk number `index` of the output layer: `size` rows of the weight from row `start` on.

    The last chunk starts early where the vocabulary does not divide, and then shares rows with its
    neighbour; `fresh` [C] is True on the rows that are its own. So the weight is never padded.
    """

    def __init__(self, weight: jax.Array, index: jax.Array, size: int) -> None:
        self.start = jnp.minimum(index * size, weight.shape[0] - size)
        self.rows = jax.lax.dynamic_slice_in_dim(weight, self.start, size)
        self.columns = self.start + jnp.arange(size)
        self.fresh = self.columns >= index * size

    def scores(
        self, hidden: jax.Array, scale: jax.Array, softcap: float | None
    ) -> tuple[jax.Array, jax.Array | float]:
        """Return the logits [T, C] and the slope of their cap."""
        products = jnp.einsum("td,cd->tc", hidden, self.rows, preferred_element_type=jnp.float32)
        if softcap is None:
            return products * scale, 1.0
        squashed = jnp.tanh(products * (scale / softcap))
        return softcap * squashed, 1.0 - squashed * squashed


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _logprob(
    hidden: jax.Array,
    weight: jax.Array,
    targets: jax.Array,
    scale: jax.Array,
    mask: jax.Array,
    softcap: float | None,
) -> jax.Array:
    return _forward(hidden, weight, targets, scale, mask, softcap)[0]


def _forward(
    hidden: jax.Array,
    weight: jax.Array,
    targets: jax.Array,
    scale: jax.Array,
    mask: jax.Array,
    softcap: float | None,
) -> tuple[jax.Array, Residuals]:
    count, size = _chunks(hidden.shape[0], weight.shape[0])

    def body(
        carry: tuple[jax.Array, jax.Array, jax.Array], index: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        top, total, picked = carry
        chunk = _Chunk(weight, index, size)
        scores, _ = chunk.scores(hidden, scale, softcap)
        scores = jnp.where(chunk.fresh, scores, MASKED)
        new_top = jnp.maximum(top, scores.max(-1))
        total = total * jnp.exp(top - new_top) + jnp.exp(scores - new_top[:, None]).sum(-1)
        # Taken from the same scores as the sum, so that no probability comes out above one.
        place = targets - chunk.start
        at = jnp.take_along_axis(scores, jnp.clip(place, 0, size - 1)[:, None], axis=1)[:, 0]
        own = (place >= 0) & (place < size) & (targets >= index * size)
        return (new_top, total, jnp.where(own, at, picked)), None

    tokens = hidden.shape[:1]
    start = (jnp.full(tokens, MASKED), jnp.zeros(tokens), jnp.zeros(tokens))
    start = jax.tree.map(lambda x: x.astype(jnp.float32), start)
    (top, total, picked), _ = jax.lax.scan(body, start, jnp.arange(count))
    log_total = jnp.log(total)
    out = jnp.where(mask, (picked - top) - log_total, 0.0)
    return out, (hidden, weight, targets, scale, mask, top + log_total)


def _backward(softcap: float | None, kept: Residuals, g: jax.Array) -> tuple[Any, ...]:
    hidden, weight, targets, scale, mask, lse = kept
    count, size = _chunks(hidden.shape[0], weight.shape[0])
    g = jnp.where(mask, g, 0.0)[:, None]

    def body(
        carry: tuple[jax.Array, jax.Array], index: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        d_hidden, d_weight = carry
        chunk = _Chunk(weight, index, size)
        scores, slope = chunk.scores(hidden, scale, softcap)
        hit = (targets[:, None] == chunk.columns).astype(jnp.float32)
        d_scores = (hit - jnp.exp(scores - lse[:, None])) * g * slope
        d_scores = jnp.where(chunk.fresh, d_scores, 0.0).astype(hidden.dtype)
        d_hidden = d_hidden + jnp.dot(d_scores, chunk.rows, preferred_element_type=jnp.float32)
        d_rows = jnp.einsum("tc,td->cd", d_scores, hidden, preferred_element_type=jnp.float32)
        # Each row is added to once (a shared row gets a zero the second time), so the dtype of the
        # weight loses nothing and no float32 copy of the weight's gradient is made.
        old = jax.lax.dynamic_slice_in_dim(d_weight, chunk.start, size)
        new = old + (scale * d_rows).astype(d_weight.dtype)
        return (d_hidden, jax.lax.dynamic_update_slice_in_dim(d_weight, new, chunk.start, 0)), None

    start = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(weight))
    (d_hidden, d_weight), _ = jax.lax.scan(body, start, jnp.arange(count))
    # Without the factor `scale` as yet, its product with hidden is the gradient to the scale.
    d_scale = (d_hidden * hidden).sum()
    return (scale * d_hidden).astype(hidden.dtype), d_weight, None, d_scale, None


_logprob.defvjp(_forward, _backward)


def xla_linear_logprob(
    hidden: jax.Array,
    weight: jax.Array,
    targets: jax.Array,
    *,
    scale: float | jax.Array,
    softcap: float | None,
    mask: jax.Array,
) -> jax.Array:
    """As `reference_linear_logprob`, in memory that does not grow with tokens x vocabulary.

    Products are in the dtype of the inputs with float32 sums. The gradients to `hidden` and `weight`
    have their dtypes; `scale` has one too.
    """
    return _logprob(hidden, weight, targets, jnp.asarray(scale, jnp.float32), mask, softcap)
