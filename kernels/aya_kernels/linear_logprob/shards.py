"""The rows of the vocabulary on one device, or split over several.

Inside `jax.shard_map` each device gathers the sums over its own rows, and a few numbers a token are
reduced over the devices. What tells the gradients of replicated arrays to be summed over the devices is
that these are cast to varying ones before use: the transpose of the cast is the sum.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp

from aya_kernels.linear_logprob.inputs import Inputs, Options, Statistics, Sums, masked

Arrays = TypeVar("Arrays")


def together(arrays: Arrays) -> Arrays:
    """Return a tree of arrays that all vary over the mesh axes over which any of them does.

    In jax 0.10 to 0.12 a gradient lacks its sum over the devices where some casts are left to be
    inferred. Outside shard_map, or in one that does not check, nothing is done.
    """
    axes = frozenset[str]().union(*(_varying(a) for a in jax.tree.leaves(arrays)))

    def cast(array: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - _varying(array)))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(cast, arrays)


def _varying(array: jax.Array) -> frozenset[str]:
    found: frozenset[str] = jax.typeof(array).manual_axis_type.varying
    return found


def local(o: Options, x: Inputs) -> Inputs:
    """Return the inputs of this device's sums: targets count from its first row."""
    return together(x._replace(targets=x.targets - _first_row(o, x)))


def _first_row(o: Options, x: Inputs) -> jax.Array | int:
    return jax.lax.axis_index(o.axes) * x.weight.shape[0] if o.axes else 0


def statistics(o: Options, x: Inputs, sums: Sums) -> Statistics:
    """Make of each token's sums, over all devices that `o.axes` name, what is known of it.

    `top` is a constant to autodiff: it cancels. Differences to it are what is summed, so that scores
    of 1e4 lose no digits.
    """
    top = jax.lax.stop_gradient(sums.top)
    total, picked, moment, best = sums.total, sums.picked, sums.moment, sums.best
    if x.mask is not None:
        # The sums of a token that does not count may be anything.
        top, picked, total = (
            jnp.where(x.mask, a, neutral)
            for a, neutral in ((top, 0.0), (picked, 0.0), (total, 1.0))
        )
        moment = None if moment is None else jnp.where(x.mask, moment, 0.0)
    if o.axes:
        row = x.targets - _first_row(o, x)
        here = (row >= 0) & (row < x.weight.shape[0])
        own, top = top, jax.lax.pmax(top, o.axes)
        shrink = jnp.exp(own - top)
        parts = [total * shrink, jnp.where(here, picked - top, 0.0)]
        if moment is not None:
            parts.append((moment + (own - top) * total) * shrink)
        total, picked, *moments = jax.lax.psum(jnp.stack(parts), o.axes)
        moment = moments[0] if moments else None
        if best is not None:
            best = jnp.where(own == top, best + _first_row(o, x), jnp.iinfo(jnp.int32).max)
            best = jax.lax.pmin(best, o.axes)
    else:
        picked = picked - top
    log_total = jnp.log(total)
    entropy = None if moment is None else log_total - moment / total
    found = Statistics(picked - log_total, top + log_total, entropy, best)
    return masked(found, x.mask)
