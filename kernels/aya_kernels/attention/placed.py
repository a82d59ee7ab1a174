"""Attention on a mesh: every device computes its rows, its heads and its part of the sequence."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from aya_kernels.attention.flash import Backward, Forward, Pair, flash
from aya_kernels.attention.inputs import Inputs, Options
from aya_kernels.attention.ring import ring_backward, ring_forward
from aya_kernels.placement import Placement


def on_mesh(forward: Forward, backward: Backward, place: Placement) -> Forward:
    """Return the two passes as one differentiable function of arrays that are split over a mesh.

    The gradient is taken outside of `jax.shard_map`, so each pass is plain local work. Key heads that
    do not go round are repeated, so that each device has those of its own query heads.

    Raises:
      ValueError: rows, query heads or the sequence do not divide into the parts of the mesh.
    """

    def run(o: Options, x: Inputs) -> Pair:
        x = _fitting(x, place)
        sequence = place.sequence if place.parts(place.sequence) > 1 else ()
        out = PartitionSpec(place.batch, sequence, place.heads, None)
        row = PartitionSpec(place.batch, place.heads, sequence)
        specs = _specs(x, out, PartitionSpec(place.batch, sequence))
        ahead, back = forward, backward
        if sequence:
            ahead, back = ring_forward(forward, sequence), ring_backward(backward, sequence)

        def spread(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
            return jax.shard_map(
                function, mesh=place.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
            )

        def local_forward(o: Options, x: Inputs) -> Pair:
            return spread(partial(ahead, o), (specs,), (out, row))(x)

        def local_backward(
            o: Options, x: Inputs, *rest: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            return spread(partial(back, o), (specs, row, row, out), (out, out, out))(x, *rest)

        return flash(local_forward, local_backward)(o, x)

    return run


def _fitting(x: Inputs, place: Placement) -> Inputs:
    """Return the inputs with as many key heads as the mesh needs, or say what does not divide."""
    n, kv_heads = x.q.shape[2], x.k.shape[2]
    wrong = place.indivisible(
        ("rows", x.q.shape[0], place.batch),
        ("query heads", n, place.heads),
        ("queries", x.q.shape[1], place.sequence),
        ("keys", x.k.shape[1], place.sequence),
    )
    if wrong:
        raise ValueError(f"attention: {wrong}")
    parts = place.parts(place.heads)
    if kv_heads % parts == 0:
        return x
    # The fewest copies that divide both ways: each device then holds whole groups.
    copies = next(c for c in range(1, n // kv_heads + 1) if _whole_groups(n, kv_heads * c, parts))
    return x._replace(k=jnp.repeat(x.k, copies, axis=2), v=jnp.repeat(x.v, copies, axis=2))


def _whole_groups(heads: int, kv_heads: int, parts: int) -> bool:
    return heads % kv_heads == 0 and kv_heads % parts == 0


def _specs(x: Inputs, array: PartitionSpec, ids: PartitionSpec) -> Any:
    """Return the place of each of the inputs; numbers are the same everywhere."""
    number = PartitionSpec()
    every: tuple[Any, ...] = (array, array, array, ids, ids, number, number, number)
    kept: Any = [None if a is None else spec for a, spec in zip(x, every, strict=True)]
    return Inputs(*kept)
