"""The scores in chunks: some columns of the vocabulary, for the tokens that count."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aya_kernels.linear_logprob.inputs import Inputs, Options

# Columns of logits at once. 4096 keeps matrix units busy; a vocabulary no larger is one chunk.
MOST_COLUMNS = 4096
LEAST_COLUMNS = 1024
# With many tokens fewer columns, so that a chunk of float32 logits stays near 128 MiB.
CHUNK_ELEMENTS = 1 << 25
# How finely the number of tokens that count is rounded up.
PARTS = 8


def chunks(tokens: int, vocabulary: int) -> tuple[int, int]:
    """Return the number of chunks and their columns, at most `vocabulary`, as even as can be."""
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
        self.rows = jax.lax.dynamic_slice_in_dim(weight, self.start, size)
        self.columns = self.start + jnp.arange(size)
        self.fresh = self.columns >= index * size

    def scores(self, o: Options, x: Inputs) -> tuple[jax.Array, jax.Array | float]:
        """Return the scores [T, C] and the slope of their cap."""
        products = jnp.einsum("td,cd->tc", x.hidden, self.rows, preferred_element_type=jnp.float32)
        if o.softcap is None:
            return products * x.scale, 1.0
        squashed = jnp.tanh(products * (x.scale / o.softcap))
        return o.softcap * squashed, 1.0 - squashed * squashed


def over_counted(x: Inputs, compute: Callable[[int], Any]) -> Any:
    """Return `compute(size)` for a size that holds the tokens that count, T or eighths of it.

    A loop over blocks of tokens would follow their number more closely, but each block would read and
    write the float32 gradient of the weight's chunk again, and on some chips that is as slow as the
    products are.
    """
    tokens = x.targets.shape[0]
    part = -(-tokens // (PARTS * 128)) * 128
    sizes = [*range(part, tokens, part), tokens]
    if x.count is None or len(sizes) == 1:
        return compute(tokens)
    index = jnp.clip((x.count + part - 1) // part - 1, 0, len(sizes) - 1)
    return jax.lax.switch(index, [lambda size=size: compute(size) for size in sizes])


def padded(array: jax.Array, tokens: int) -> jax.Array:
    """Return the array with zeros appended to its first axis, up to `tokens`."""
    room = [(0, tokens - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, room)


def first(x: Inputs, size: int) -> Inputs:
    """Return the inputs of the first `size` tokens."""
    if size == x.targets.shape[0]:
        return x
    return x._replace(hidden=x.hidden[:size], targets=x.targets[:size])
