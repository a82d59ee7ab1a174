"""linear_logprob in chunks of the vocabulary: the logits [T, V] never exist, forward or backward."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

# Up to this many float32 logits at once: one chunk for a small vocabulary, many for a large one.
CHUNK_ELEMENTS = 1 << 23
MASKED = -1e30


def _chunk_size(tokens: int, vocabulary: int) -> int:
    if tokens * vocabulary <= CHUNK_ELEMENTS:
        return vocabulary
    return max(128, CHUNK_ELEMENTS // tokens // 128 * 128)


def _scores(
    hidden: jax.Array, rows: jax.Array, scale: jax.Array, softcap: float | None
) -> tuple[jax.Array, jax.Array | float]:
    """Return the (capped) logits [T, C] of a chunk and their slope in the raw product."""
    scores = jnp.einsum("td,cd->tc", hidden, rows, preferred_element_type=jnp.float32) * scale
    if softcap is None:
        return scores, 1.0
    squashed = jnp.tanh(scores / softcap)
    return softcap * squashed, 1.0 - squashed * squashed


def _chunks(weight: jax.Array, size: int) -> jax.Array:
    room = -weight.shape[0] % size
    return jnp.pad(weight, ((0, room), (0, 0))).reshape(-1, size, weight.shape[1])


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
) -> tuple[jax.Array, Any]:
    size = _chunk_size(hidden.shape[0], weight.shape[0])
    vocabulary = weight.shape[0]

    def body(carry: Any, chunk: Any) -> tuple[Any, None]:
        top, total = carry
        start, rows = chunk
        scores, _ = _scores(hidden, rows, scale, softcap)
        scores = jnp.where(start + jnp.arange(size) < vocabulary, scores, MASKED)
        new_top = jnp.maximum(top, scores.max(-1))
        total = total * jnp.exp(top - new_top) + jnp.exp(scores - new_top[:, None]).sum(-1)
        return (new_top, total), None

    start = (
        jnp.full(hidden.shape[:1], MASKED, jnp.float32),
        jnp.zeros(hidden.shape[:1], jnp.float32),
    )
    chunks = _chunks(weight, size)
    starts = jnp.arange(len(chunks)) * size
    (top, total), _ = jax.lax.scan(body, start, (starts, chunks))
    lse = top + jnp.log(total)
    picked = jnp.einsum(
        "td,td->t", hidden, weight[targets], preferred_element_type=jnp.float32
    )
    picked = picked * scale
    if softcap is not None:
        picked = softcap * jnp.tanh(picked / softcap)
    out = jnp.where(mask, picked - lse, 0.0)
    return out, (hidden, weight, targets, scale, mask, lse)


def _backward(softcap: float | None, kept: Any, g: jax.Array) -> Any:
    hidden, weight, targets, scale, mask, lse = kept
    size = _chunk_size(hidden.shape[0], weight.shape[0])
    vocabulary = weight.shape[0]
    g = jnp.where(mask, g, 0.0)

    def body(d_hidden: jax.Array, chunk: Any) -> tuple[jax.Array, jax.Array]:
        start, rows = chunk
        scores, slope = _scores(hidden, rows, scale, softcap)
        columns = start + jnp.arange(size)
        p = jnp.where(columns < vocabulary, jnp.exp(scores - lse[:, None]), 0.0)
        hit = (targets[:, None] == columns).astype(jnp.float32)
        d_scores = (hit - p) * g[:, None] * slope
        raw = (d_scores * scale).astype(hidden.dtype)
        d_hidden = d_hidden + jnp.dot(raw, rows, preferred_element_type=jnp.float32)
        d_rows = jnp.einsum("tc,td->cd", raw, hidden, preferred_element_type=jnp.float32)
        return d_hidden, d_rows

    chunks = _chunks(weight, size)
    starts = jnp.arange(len(chunks)) * size
    zeros = jnp.zeros(hidden.shape, jnp.float32)
    d_hidden, d_weight = jax.lax.scan(body, zeros, (starts, chunks))
    d_weight = d_weight.reshape(-1, weight.shape[1])[:vocabulary]
    # The raw product x enters only as scale * x, so its gradient tells the scale's.
    d_scale = (d_hidden * hidden).sum() / scale
    return (
        d_hidden.astype(hidden.dtype),
        d_weight.astype(weight.dtype),
        None,
        d_scale.astype(scale.dtype),
        None,
    )


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
    """As `reference_linear_logprob`, in memory that does not grow with tokens x vocabulary."""
    return _logprob(hidden, weight, targets, jnp.asarray(scale, jnp.float32), mask, softcap)
