"""Sums with their counts, added up over micro-batches and devices before any division."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# More than any mixture has; what is beyond counts as no language.
LANGUAGES = 64


class Total(NamedTuple):
    """`loss / count` is the mean loss; each metric is a pair (sum, count).

    All are float32 scalars, but for a metric by language, whose pair is two arrays [LANGUAGES].
    """

    loss: jax.Array
    count: jax.Array  # type: ignore[assignment]  # tuple.count is not used here
    metrics: dict[str, tuple[jax.Array, jax.Array]]


def add(a: Total, b: Total) -> Total:
    """Return the total of two disjoint parts of a batch."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def by_language(
    values: jax.Array, weights: jax.Array, languages: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the weighted sum of `values`, and that of `weights`, of each language: [LANGUAGES] both.

    Args:
      values, weights: float32, of equal shapes [...].
      languages: int32 [...], the number of each one's language, 0 for none.
    """
    each = languages[..., None] == jnp.arange(LANGUAGES)
    axes = tuple(range(languages.ndim))
    return (
        jnp.where(each, (values * weights)[..., None], 0.0).sum(axes),
        jnp.where(each, weights[..., None], 0.0).sum(axes),
    )
