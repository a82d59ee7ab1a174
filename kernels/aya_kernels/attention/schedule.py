"""The visible blocks as one list of steps, for kernels whose grid is walked in order.

A step is one int32: which block it is and what is to be done there. The list is made outside the
kernel and is as long as there are blocks to visit, so that a block that holds nothing has no step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

FLAGS = 4


class Step(NamedTuple):
    """What a step says, as scalars of a kernel."""

    batch: Any
    row: Any
    column: Any
    first: Any  # of its row: what is summed over the row starts
    last: Any  # of its row: the sums are done
    some: Any  # the block may hold a visible pair; a row with none has one step without
    every: Any  # every pair of the block is visible


class Layout(NamedTuple):
    """How many bits of a step belong to the row and to the column."""

    rows: int
    columns: int

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> "Layout":
        return cls(*((length - 1).bit_length() for length in shape[-2:]))

    def read(self, word: Any) -> Step:
        def field(start: int, bits: int) -> Any:
            return jax.lax.shift_right_logical(word, start) & ((1 << bits) - 1)

        return Step(
            jax.lax.shift_right_logical(word, FLAGS + self.columns + self.rows),
            field(FLAGS + self.columns, self.rows),
            field(FLAGS, self.columns),
            *((word & (1 << bit)) != 0 for bit in range(FLAGS)),
        )


def schedule(some: jax.Array, every: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the steps in order of batch, row and column, and how many there are.

    Args:
      some, every: bool [B, I, J], as `blocks.visible_blocks` returns them (or transposed).

    Returns:
      int32 [B * I * J], read by `Layout.of((I, J)).read`, and an int32 between B * I and B * I * J.
      Every row has a step, so that what belongs to it is always written.
    """
    layout = Layout.of(some.shape)
    batch, row, column = (
        jax.lax.broadcasted_iota(jnp.int32, some.shape, axis) for axis in range(3)
    )
    visited = some | ((column == 0) & ~some.any(-1, keepdims=True))
    before = jnp.cumsum(visited, axis=-1, dtype=jnp.int32)
    first, last = before == 1, before == before[..., -1:]
    word = (batch << layout.rows | row) << layout.columns | column
    for bit in (every, some, last, first):
        word = word << 1 | bit.astype(jnp.int32)
    # The words of steps grow from one to the next, so that sorting them moves the steps together.
    words = jnp.sort(jnp.where(visited, word, jnp.iinfo(jnp.int32).max), axis=None)
    return words, visited.sum(dtype=jnp.int32)
