"""Experts over the devices of a mesh: each group of devices computes with the experts it holds."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from aya_jax.errors import AyaError
from aya_jax.sharding.mesh import axes_of, batch_sharding, mesh_axes
from aya_jax.sharding.place import current_place


def over_experts(
    compute: Callable[..., jax.Array],
    tokens: Sequence[jax.Array],
    matrices: Sequence[jax.Array],
    axes: Sequence[tuple[str, ...]],
) -> jax.Array:
    """Return `compute(*tokens, *matrices, first)`, summed over the devices that hold the experts.

    Tokens stay where they are: every device computes its own tokens' share of the experts that it
    holds, and the shares are added. Without `placed_on`, all is on one device.

    Args:
      compute: takes its device's part of the arguments, and the number of its first expert; returns
        an array of the shape of the first of `tokens`, its own experts' contribution.
      tokens: arrays [B, ...], split as batches are.
      matrices: arrays [E, ...].
      axes: the logical axes of each of `matrices`; `embed` is gathered.

    Raises:
      AyaError: experts or their feed-forward axis are split over an axis that batches are.
    """
    place = current_place()
    if place is None:
        return compute(*tokens, *matrices, 0)
    mesh, rules = place
    kept = tuple(rule for rule in rules if rule[0] != "embed")
    specs = [mesh_axes(PartitionSpec(*names), kept) for names in axes]
    rows = batch_sharding(mesh, rules).spec
    # With those of one device: what is checked inside is told by the axes of the specs.
    batch, experts, mlp = (axes_of(dict(rules)[name]) for name in ("batch", "experts", "mlp"))
    used = tuple(sorted({*experts, *mlp}))
    shared = set(used) & set(batch)
    if shared:
        raise AyaError(
            f"logical_rules: experts and mlp cannot be split over {min(shared)!r}, as the batch is"
        )

    def local(*arguments: jax.Array) -> jax.Array:
        first = jnp.int32(0)
        for axis in experts:
            first = first * mesh.shape[axis] + jax.lax.axis_index(axis)
        first = first * arguments[len(tokens)].shape[0]
        # Said outright: in jax 0.10 to 0.12 the gradient of `invariant[varying indices]` lacks its sum over
        # the devices where the cast is left to be inferred.
        own = [jax.lax.pcast(x, used, to="varying") for x in arguments[: len(tokens)]]
        return jax.lax.psum(compute(*own, *arguments[len(tokens) :], first), used)

    spread = jax.shard_map(
        local, mesh=mesh, in_specs=(*(rows for _ in tokens), *specs), out_specs=rows
    )
    return spread(*tokens, *matrices)
