"""What every backend of the linear log-probability takes and gives.

Shapes: T tokens, V rows of the vocabulary, D hidden size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Stands for minus infinity: finite, so that exp(top - new_top) is never exp(inf - inf).
MASKED = -1e30


class Options(NamedTuple):
    """What does not change within a call; hashable."""

    softcap: float | None
    entropy: bool
    argmax: bool
    axes: tuple[str, ...]  # the mesh axes over which the rows of the vocabulary are split
    # Those over which the columns of the weight are split, and the tokens too; see `slabs.py`.
    columns: tuple[str, ...] = ()


class Inputs(NamedTuple):
    """The arrays of a call; a target outside [0, V) is that of a masked token, or of another shard."""

    hidden: jax.Array  # [T, D]
    weight: jax.Array  # [V, D]
    targets: jax.Array  # int32 [T]
    scale: jax.Array  # float32 []
    mask: jax.Array | None = None  # bool [T]; None: every token counts
    # int32 []: only the first `count` tokens count, and the mask says so too; None: no such order.
    count: jax.Array | None = None  # type: ignore[assignment]


class Sums(NamedTuple):
    """What one pass over the rows of a weight gathers for each token, all [T].

    With s = softcap(scale * hidden @ weight.T) [T, V] in float32, of products in the dtype of the
    inputs with float32 sums. None for what was not asked for.
    """

    top: jax.Array  # float32: max of s
    total: jax.Array  # float32: sum of exp(s - top), at least 1
    picked: jax.Array  # float32: s at the target; 0 where the target is not one of the rows
    moment: jax.Array | None  # float32: sum of exp(s - top) * (s - top), for `Options.entropy`
    best: jax.Array | None  # int32: the first row where s is top, for `Options.argmax`


class Statistics(NamedTuple):
    """What is known of the distribution of each token, all [T]; 0 where the mask is False.

    None for what was not asked for.
    """

    logp: jax.Array  # float32: log-probability of the target
    lse: jax.Array  # float32: log-sum-exp of the scores
    entropy: jax.Array | None  # float32, in nats
    argmax: jax.Array | None  # int32: the likeliest word, the first of equals


def masked(found: Statistics, mask: jax.Array | None) -> Statistics:
    """Return the statistics with 0 where the mask is False."""
    if mask is None:
        return found
    return jax.tree.map(lambda a: jnp.where(mask, a, 0), found)
