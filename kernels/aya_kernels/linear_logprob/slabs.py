"""A weight whose columns are split over devices that have different tokens, as FSDP holds it.

It is never whole on a device: some rows at a time are gathered, and their gradient is summed back to
where they are held.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aya_kernels.linear_logprob.inputs import Inputs, Options, Sums

# The most bytes of gathered rows; each slab reads the tokens again, 64 MiB of them at 8192 x 4096.
SLAB = 256 << 20

Forward = Callable[[Options, Inputs], Sums]
Gradients = tuple[jax.Array, jax.Array, jax.Array]
Backward = Callable[[Options, Inputs, jax.Array, Sums], Gradients]


def slab_rows(x: Inputs) -> int:
    """Return the rows of a slab: the most that divide the weight's and whose bytes are in bounds."""
    rows = x.weight.shape[0]
    most = max(SLAB // (x.hidden.shape[-1] * x.weight.dtype.itemsize), 1)
    return max(size for size in range(1, min(rows, most) + 1) if rows % size == 0)


def slabs_forward(forward: Forward) -> Forward:
    """Return a forward pass of a weight that is whole as one of a weight in columns (`Options.columns`)."""

    def run(o: Options, x: Inputs) -> Sums:
        if not o.columns:
            return forward(o, x)
        size = slab_rows(x)

        def body(sums: Sums, first: jax.Array) -> tuple[Sums, None]:
            return _joined(sums, _moved(forward(o, _slab(o, x, first, size)), first)), None

        start = _moved(forward(o, _slab(o, x, jnp.int32(0), size)), 0)
        return jax.lax.scan(body, start, jnp.arange(size, x.weight.shape[0], size))[0]

    return run


def slabs_backward(backward: Backward) -> Backward:
    """Return the backward pass of a weight in columns; see `slabs_forward`."""

    def run(o: Options, x: Inputs, top: jax.Array, g: Sums) -> Gradients:
        if not o.columns:
            return backward(o, x, top, g)
        size = slab_rows(x)

        def body(carry: Gradients, first: jax.Array) -> tuple[Gradients, None]:
            d_hidden, d_weight, d_scale = carry
            more, d_rows, d_more = backward(o, _slab(o, x, first, size), top, g)
            own = jax.lax.psum_scatter(d_rows, o.columns, scatter_dimension=1, tiled=True)
            d_weight = jax.lax.dynamic_update_slice_in_dim(d_weight, own, first, 0)
            return (d_hidden + more, d_weight, d_scale + d_more), None

        start = (
            jnp.zeros_like(x.hidden, jnp.float32),
            jnp.zeros_like(x.weight),
            jnp.zeros_like(x.scale),
        )
        return jax.lax.scan(body, start, jnp.arange(0, x.weight.shape[0], size))[0]

    return run


def _slab(o: Options, x: Inputs, first: jax.Array, size: int) -> Inputs:
    """Return the inputs with `size` whole rows of the weight, from row `first` on."""
    rows = jax.lax.dynamic_slice_in_dim(x.weight, first, size)
    rows = jax.lax.all_gather(rows, o.columns, axis=1, tiled=True)
    return x._replace(weight=rows, targets=x.targets - first)


def _moved(sums: Sums, first: jax.Array | int) -> Sums:
    return sums if sums.best is None else sums._replace(best=sums.best + first)


def _joined(a: Sums, b: Sums) -> Sums:
    """Return the sums over the rows of two slabs, of which `b` comes later."""
    top = jnp.maximum(a.top, b.top)

    def shrunk(part: Sums) -> tuple[jax.Array, jax.Array | None]:
        below = part.top - top
        moment = part.moment
        if moment is not None:
            moment = (moment + below * part.total) * jnp.exp(below)
        return part.total * jnp.exp(below), moment

    (total_a, moment_a), (total_b, moment_b) = shrunk(a), shrunk(b)
    moment = None if moment_a is None or moment_b is None else moment_a + moment_b
    best = None
    if a.best is not None and b.best is not None:
        best = jnp.where(b.top > a.top, b.best, a.best)
    return Sums(top, total_a + total_b, a.picked + b.picked, moment, best)
