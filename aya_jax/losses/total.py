"""Sums with their counts, added up over micro-batches and devices before any division."""

from typing import NamedTuple

import jax


class Total(NamedTuple):
    """`loss / count` is the mean loss; each metric is a pair (sum, count), all float32 scalars."""

    loss: jax.Array
    count: jax.Array  # type: ignore[assignment]  # tuple.count is not used here
    metrics: dict[str, tuple[jax.Array, jax.Array]]


def add(a: Total, b: Total) -> Total:
    """Return the total of two disjoint parts of a batch."""
    return jax.tree.map(lambda x, y: x + y, a, b)
