"""The gradient of the sums, shared by every backend that never holds the logits.

Each piece of the scores, B tokens x C columns, is made again from the inputs; with the kept maximum of
each token that is all that its gradient needs. So a piece takes three products: the scores, the gradient
to hidden and the one to the weight. Two kernels that keep their scores on the chip (one sums over the
vocabulary for hidden, one over tokens for the weight) would make the scores twice, four products,
since neither loop can carry the other's sum.

What that saves has its price in traffic. For each score, in bfloat16: 8 bytes of the float32 score
written and read (none where the compiler joins the elementwise part to the product, as XLA does for
TPUs), 6 of its gradient, written once and read twice, and 8 * D / C and 8 * D / B for the two float32
sums, read and written. At D = B = C = 4096 that is 30 bytes for 6 * D = 24,576 operations, 820
operations a byte; chips balance at about 170 (TPU v5p), 240 (v5e), 300 (H100) and 560 (v6e). So even
where nothing overlaps it comes to about as much as the fourth product (a third of the three) on most
chips, and the sums overlap with the products that they belong to. These are sums on paper, not
measurements.

The vocabulary is the outer loop: a row of the weight's gradient is whole after one chunk, and is
written once, in the dtype of the weight, with no float32 copy [V, D] of it.
"""

import jax
import jax.numpy as jnp

from aya_kernels.linear_logprob.chunks import Chunk, block_of, chunks, cut, over_blocks, put
from aya_kernels.linear_logprob.inputs import Inputs, Options, Sums

Pair = tuple[jax.Array, jax.Array]


def backward(
    o: Options, x: Inputs, top: jax.Array, g: Sums
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients to hidden (float32), weight and scale.

    Args:
      o, x: as of the forward pass.
      top: float32 [T], its maxima; for tokens from `x.count` on a number that no score reaches.
      g: the gradients to its total, picked and moment, 0 for tokens from `x.count` on.
    """
    count, size = chunks(x)

    def body(carry: Pair, index: jax.Array) -> tuple[Pair, None]:
        d_hidden, d_weight = carry
        chunk = Chunk(x.weight, index, size)

        def step(start: int | jax.Array, tokens: int, carry: Pair) -> Pair:
            d_hidden, d_rows = carry
            block = block_of(x, start, tokens)
            part = jax.tree.map(
                lambda a: cut(a, start, tokens)[:, None], g._replace(top=top, best=None)
            )
            d_scores = _d_scores(o, block, chunk, part)
            d_block = jnp.dot(d_scores, chunk.rows, preferred_element_type=jnp.float32)
            d_rows = d_rows + jnp.einsum(
                "tc,td->cd", d_scores, block.hidden, preferred_element_type=jnp.float32
            )
            return put(d_hidden, cut(d_hidden, start, tokens) + d_block, start), d_rows

        start = (d_hidden, jnp.zeros_like(chunk.rows, jnp.float32))
        d_hidden, d_rows = over_blocks(x, step, start)
        # Each row is added to once (a shared row gets a zero the second time), so the dtype of the
        # weight loses nothing.
        old = jax.lax.dynamic_slice_in_dim(d_weight, chunk.start, size)
        new = old + (x.scale * d_rows).astype(d_weight.dtype)
        return (d_hidden, put(d_weight, new, chunk.start)), None

    start = (jnp.zeros_like(x.hidden, jnp.float32), jnp.zeros_like(x.weight))
    (d_hidden, d_weight), _ = jax.lax.scan(body, start, jnp.arange(count))
    # Without the factor `scale` as yet, its product with hidden is the gradient to the scale.
    d_scale = (d_hidden * x.hidden).sum()
    return x.scale * d_hidden, d_weight, d_scale


def _d_scores(
    o: Options,
    x: Inputs,
    chunk: Chunk,
    g: Sums,
) -> jax.Array:
    """Return the gradient [T, C] to a chunk's products, less the factor `scale`.

    Of `g`, [T, 1], the top is the maxima and the rest the gradients to the sums.
    """
    scores, slope = chunk.scores(o, x)
    below = scores - g.top
    slant = g.total if g.moment is None else g.total + g.moment * (1.0 + below)
    hit = x.targets[:, None] == chunk.columns
    d_scores = (jnp.exp(below) * slant + jnp.where(hit, g.picked, 0.0)) * slope
    return jnp.where(chunk.fresh, d_scores, 0.0).astype(x.hidden.dtype)
