"""The sums of the linear log-probability in plain XLA, a chunk of the vocabulary at a time.

A running maximum and sum of exponentials go over the chunks, so the logits [T, V] never exist.
"""

import jax
import jax.numpy as jnp

from aya_kernels.linear_logprob.chunks import Chunk, block_of, chunks, over_blocks, put
from aya_kernels.linear_logprob.inputs import MASKED, Inputs, Options, Sums


def forward(o: Options, x: Inputs) -> Sums:
    """Return the sums of each token; see `streamed.streamed`."""
    count, size = chunks(x)

    def step(start: int | jax.Array, tokens: int, carry: Sums) -> Sums:
        block = _sums(o, block_of(x, start, tokens), count, size)
        return jax.tree.map(lambda a, part: put(a, part, start), carry, block)

    return over_blocks(x, step, _nothing(o, x))


def _nothing(o: Options, x: Inputs) -> Sums:
    """Return the sums over no rows."""
    zeros = jnp.zeros_like(x.targets, jnp.float32)
    return Sums(
        top=zeros + MASKED,
        total=zeros,
        picked=zeros,
        moment=zeros if o.entropy else None,
        best=jnp.zeros_like(x.targets) if o.argmax else None,
    )


def _sums(o: Options, x: Inputs, count: int, size: int) -> Sums:
    """Return the sums of a block of tokens over `count` chunks of `size` columns."""

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

    out, _ = jax.lax.scan(body, _nothing(o, x), jnp.arange(count))
    return out
