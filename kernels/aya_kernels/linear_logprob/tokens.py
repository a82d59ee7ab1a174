"""Tokens that count come first, so that a kernel can leave the others out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aya_kernels.linear_logprob import chunks
from aya_kernels.linear_logprob.inputs import Inputs
from aya_kernels.linear_logprob.shards import together

# Up to so many scores all tokens are computed: moving some would cost more than it saves. On a CPU it paid at
# twice as many already; on accelerators it was not measured.
SMALL = 1 << 21


@jax.custom_vjp
def _moved(array: jax.Array, there: jax.Array, back: jax.Array) -> jax.Array:
    """Return `array[there]`, where `back` says where each entry went.

    Its gradient is a gather too, where that of an index would be a scatter. Entries that went to more
    than one place have a gradient in that one only.
    """
    return array[there]


def _moved_forward(
    array: jax.Array, there: jax.Array, back: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return array[there], back


def _moved_backward(back: jax.Array, g: jax.Array) -> tuple[jax.Array, None, None]:
    return g[back], None, None


_moved.defvjp(_moved_forward, _moved_backward)


def masked_last(x: Inputs) -> tuple[Inputs, Callable[[jax.Array], jax.Array]]:
    """Bring the tokens that count to the front, in their order, and count them.

    Returns:
      The inputs, with `count` where tokens were moved; and a function that brings an array [T] of
      the new order, all of whose other entries are 0, back to the old one.
    """
    tokens = x.targets.shape[0]
    if x.mask is None or tokens <= chunks.SHORT_BLOCK or tokens * x.weight.shape[0] <= SMALL:
        return x, lambda array: array
    hidden, mask = together((x.hidden, x.mask))
    order = jnp.argsort(~mask, stable=True)
    counted = jnp.cumsum(mask, dtype=jnp.int32)
    count = counted[-1]
    room = -tokens % chunks.SHORT_BLOCK
    numbers = jnp.arange(tokens + room, dtype=jnp.int32)
    place = jnp.where(mask, counted - 1, count + numbers[:tokens] - counted)
    # The last block is whole: the first token once more, which does not count.
    order = jnp.pad(order, (0, room))
    moved = x._replace(
        hidden=_moved(hidden, order, place),
        targets=x.targets[order],
        mask=numbers < count,
        count=count,
    )
    return moved, lambda array: _moved(array, place, order)
