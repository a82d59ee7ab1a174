"""Ring attention (arXiv 2310.01889): a sequence in parts, one a device, and keys that go round.

Every device keeps its queries. Keys and values travel once round the ring, each device attends to the
part it holds, and what it found is combined by log-sum-exp. In the backward pass the gradients of keys
and values travel with them and are home after one round. Only a part of the keys is ever on a device,
and the transfer of the next part runs while this one is computed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from aya_kernels.attention.combine import combine
from aya_kernels.attention.flash import Backward, Forward, Pair
from aya_kernels.attention.inputs import Inputs, Options

Axis = str | tuple[str, ...]


def ring_forward(forward: Forward, axis: Axis) -> Forward:
    """Return a forward pass over the sequence whose parts lie along the mesh axis `axis`.

    Called within `jax.shard_map`; the arrays are this device's parts, all of one length, in the order
    of the axis. Offsets are those of the whole sequence.
    """

    def run(o: Options, x: Inputs) -> Pair:
        x = _placed(x, axis)

        def step(_: jax.Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
            (out, lse), keys = state
            coming = _pass_on(keys, axis)
            found, found_lse = forward(o, _with_keys(x, keys))
            out, lse = combine(out, lse, found, jnp.swapaxes(found_lse, 1, 2))
            return (out, lse), coming

        keys = _keys(x)
        out, lse = forward(o, _with_keys(x, keys))
        state = ((out.astype(jnp.float32), jnp.swapaxes(lse, 1, 2)), _pass_on(keys, axis))
        (out, lse), _ = jax.lax.fori_loop(1, jax.lax.axis_size(axis), step, state)
        return out.astype(x.q.dtype), jnp.swapaxes(lse, 1, 2)

    return run


def ring_backward(backward: Backward, axis: Axis) -> Backward:
    """Return the backward pass that belongs to `ring_forward`."""

    def run(
        o: Options, x: Inputs, lse: jax.Array, delta: jax.Array, g: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = _placed(x, axis)

        def part(keys: Any) -> tuple[jax.Array, ...]:
            parts = backward(o, _with_keys(x, keys), lse, delta, g)
            return tuple(array.astype(jnp.float32) for array in parts)

        def step(_: jax.Array, state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            dq, dk_dv, keys = state
            coming = _pass_on(keys, axis)
            more_dq, *more = part(keys)
            dk_dv = jax.tree.map(jnp.add, dk_dv, tuple(more))
            return dq + more_dq, _pass_on(dk_dv, axis), coming

        keys = _keys(x)
        dq, *dk_dv = part(keys)
        state = (dq, _pass_on(tuple(dk_dv), axis), _pass_on(keys, axis))
        dq, (dk, dv), _ = jax.lax.fori_loop(1, jax.lax.axis_size(axis), step, state)
        return dq.astype(x.q.dtype), dk.astype(x.k.dtype), dv.astype(x.v.dtype)

    return run


def _placed(x: Inputs, axis: Axis) -> Inputs:
    """Return the inputs with the offsets of this device's part."""
    place = jax.lax.axis_index(axis)
    q_offset, kv_offset = (
        place * array.shape[1] + (0 if offset is None else offset)
        for array, offset in ((x.q, x.q_offset), (x.k, x.kv_offset))
    )
    return x._replace(q_offset=q_offset, kv_offset=kv_offset)


def _keys(x: Inputs) -> tuple[Any, ...]:
    return x.k, x.v, x.kv_ids, x.kv_offset


def _with_keys(x: Inputs, keys: tuple[Any, ...]) -> Inputs:
    k, v, ids, offset = keys
    return x._replace(k=k, v=v, kv_ids=ids, kv_offset=offset)


def _pass_on(tree: Any, axis: Axis) -> Any:
    """Send every array of a pytree to the next device of the ring."""
    size = jax.lax.axis_size(axis)
    ring = [(place, (place + 1) % size) for place in range(size)]
    return jax.tree.map(lambda array: jax.lax.ppermute(array, axis, ring), tree)
