"""The sums of the linear log-probability in plain XLA, a chunk of the vocabulary at a time.

A running maximum and sum of exponentials go over the chunks, so the logits [T, V] never exist.
"""

import jax
import jax.numpy as jnp

from aya_kernels.linear_logprob.chunks import Chunk, chunks, first, over_counted, padded
from aya_kernels.linear_logprob.inputs import MASKED, Inputs, Options, Sums


def forward(o: Options, x: Inputs) -> Sums:
    """Return the sums of each token; see `streamed.streamed`."""
    tokens = x.targets.shape[0]

    def compute(size: int) -> Sums:
        return jax.tree.map(lambda a: padded(a, tokens), _sums(o, first(x, size), tokens))

    return over_counted(x, compute)


def _sums(o: Options, x: Inputs, tokens: int) -> Sums:
    count, size = chunks(tokens, x.weight.shape[0])

    def body(carry: Sums, index: jax.Array) -> tuple[Sums, None]:
        chunk = Chunk(x.weight, index, size)
        scores, _ = chunk.scores(o, x)
        scores = jnp.where(chunk.fresh, scores, MASKED)
        chunk_top = scores.max(-1)
        top = jnp.maximum(carry.top, chunk_top)
        shrink, fall = jnp.exp(carry.top - top), carry.top - top
        below = scores - top[:, None]
        weights = jnp.exp(below)
        # Taken from the same scores as the sum, so that no probability comes out above one.
        place = x.targets - chunk.start
        at = jnp.take_along_axis(scores, jnp.clip(place, 0, size - 1)[:, None], axis=1)[:, 0]
        own = (place >= 0) & (place < size) & (x.targets >= index * size)
        moment, best = carry.moment, carry.best
        if moment is not None:
            moment = (moment + fall * carry.total) * shrink + (weights * below).sum(-1)
        if best is not None:
            leader = chunk.start + scores.argmax(-1).astype(jnp.int32)
            best = jnp.where(chunk_top > carry.top, leader, best)
        return Sums(
            top=top,
            total=carry.total * shrink + weights.sum(-1),
            picked=jnp.where(own, at, carry.picked),
            moment=moment,
            best=best,
        ), None

    zeros = jnp.zeros_like(x.targets)
    start = Sums(
        top=jnp.full_like(zeros, MASKED, jnp.float32),
        total=zeros.astype(jnp.float32),
        picked=zeros.astype(jnp.float32),
        moment=zeros.astype(jnp.float32) if o.entropy else None,
        best=zeros if o.argmax else None,
    )
    out, _ = jax.lax.scan(body, start, jnp.arange(count))
    return out
