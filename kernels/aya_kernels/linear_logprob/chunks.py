"""The scores in pieces: some columns of the vocabulary for a block of the tokens that count."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from aya_kernels.linear_logprob.inputs import Inputs, Options

# Columns of logits at once. 4096 keeps matrix units busy; a vocabulary no larger is one chunk.
MOST_COLUMNS = 4096
LEAST_COLUMNS = 1024
# With many tokens fewer columns, so that a chunk of float32 logits stays near 128 MiB.
CHUNK_ELEMENTS = 1 << 25
# Where only the first tokens count they come in blocks: long ones, then short ones for the rest. A
# long block uses the matrix units better, a short one computes fewer tokens that do not count.
LONG_BLOCK = 4096
SHORT_BLOCK = 1024

Carry = TypeVar("Carry")


def chunks(x: Inputs) -> tuple[int, int]:
    """Return the number of chunks and their columns, at most V, as even as can be."""
    vocabulary, tokens = x.weight.shape[0], x.targets.shape[0]
    if x.count is not None:
        tokens = min(tokens, LONG_BLOCK)
    most = min(max(CHUNK_ELEMENTS // max(tokens, 1), LEAST_COLUMNS), MOST_COLUMNS)
    if vocabulary <= most:
        return 1, vocabulary
    count = -(-vocabulary // most)
    columns = -(-vocabulary // count)
    return count, -(-columns // 128) * 128


class Chunk:
    """Chunk number `index` of the output layer: `size` rows of the weight from row `start` on.

    The last chunk starts early where the vocabulary does not divide, and then shares rows with its
    neighbour; `fresh` [C] is True on the rows that are its own. So the weight is never padded.
    """

    def __init__(self, weight: jax.Array, index: jax.Array, size: int) -> None:
        self.start = jnp.minimum(index * size, weight.shape[0] - size)
        self.rows = cut(weight, self.start, size)
        self.columns = self.start + jnp.arange(size)
        self.fresh = self.columns >= index * size

    def scores(self, o: Options, x: Inputs) -> tuple[jax.Array, jax.Array | float]:
        """Return the scores [T, C] and the slope of their cap."""
        products = jnp.einsum("td,cd->tc", x.hidden, self.rows, preferred_element_type=jnp.float32)
        if o.softcap is None:
            return products * x.scale, 1.0
        squashed = jnp.tanh(products * (x.scale / o.softcap))
        return o.softcap * squashed, 1.0 - squashed * squashed


def over_blocks(
    x: Inputs, step: Callable[[int | jax.Array, int, Carry], Carry], carry: Carry
) -> Carry:
    """Return the carry after `step(first token, tokens, carry)` of each block with tokens that count.

    Without `x.count` all tokens are one block.
    """
    tokens = x.targets.shape[0]
    if x.count is None:
        return step(0, tokens, carry)
    done = jnp.zeros_like(x.count)
    if tokens >= LONG_BLOCK:
        # What would take as many short blocks as make a long one is a long one.
        long_blocks = jax.lax.div(x.count + (SHORT_BLOCK - 1), LONG_BLOCK)
        carry = jax.lax.fori_loop(
            0, long_blocks, lambda i, carry: step(i * LONG_BLOCK, LONG_BLOCK, carry), carry
        )
        done = long_blocks * LONG_BLOCK
    left = jnp.maximum(x.count - done, 0)
    return jax.lax.fori_loop(
        0,
        jax.lax.div(left + (SHORT_BLOCK - 1), SHORT_BLOCK),
        lambda i, carry: step(done + i * SHORT_BLOCK, SHORT_BLOCK, carry),
        carry,
    )


def cut(array: jax.Array, start: int | jax.Array, size: int) -> jax.Array:
    """Return `size` entries of the first axis from `start` on."""
    return array if size == array.shape[0] else jax.lax.dynamic_slice_in_dim(array, start, size)


def put(array: jax.Array, part: jax.Array, start: int | jax.Array) -> jax.Array:
    """Return the array with `part` in its first axis from `start` on."""
    if part.shape == array.shape:
        return part
    return jax.lax.dynamic_update_slice_in_dim(array, part, start, 0)


def block_of(x: Inputs, start: int | jax.Array, size: int) -> Inputs:
    """Return the inputs of the tokens of a block."""
    return x._replace(
        hidden=cut(x.hidden, start, size), targets=cut(x.targets, start, size), count=None
    )
