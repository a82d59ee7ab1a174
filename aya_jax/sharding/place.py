"""Where the arrays of a function that is being traced are: the mesh, and the rules of its axes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aya_jax.sharding.mesh import Rules, axes_of, device_mesh, logical_rules, mesh_axes

# By this name rematerialisation policies tell what was gathered from all devices.
GATHERED = "gathered"


class Place(NamedTuple):
    """A mesh and the rules by which arrays lie on it."""

    mesh: Mesh
    rules: Rules

    def axes(self, name: str) -> tuple[str, ...]:
        """Return the mesh axes of more than one device that a logical axis is split over, if any."""
        axes = axes_of(dict(self.rules)[name])
        return tuple(axis for axis in axes if self.mesh.shape[axis] > 1)

    def sharding(self, names: tuple[str | None, ...]) -> NamedSharding:
        """Return the sharding of an array with these logical axes."""
        return NamedSharding(self.mesh, mesh_axes(PartitionSpec(*names), self.rules))


_PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


def gin_place() -> Place:
    """Return the place that gin describes: `device_mesh` and `logical_rules`."""
    return Place(device_mesh(), logical_rules())


@gin.configurable(denylist=["devices"])
def inference_mesh(
    *,
    data: int | None = None,
    fsdp: int | None = None,
    tensor: int | None = None,
    sequence: int | None = None,
    expert: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Return the mesh that models sample and score on: `device_mesh`, unless a size is given here.

    What FSDP gathers once a training step, sampling would gather for each token: there `tensor` should
    hold the weights, and `data` the rows.

    Args:
      data, fsdp, tensor, sequence, expert: as of `device_mesh`; 1 where others are given.
      devices: see `device_mesh`.

    Raises:
      AyaError: see `device_mesh`.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor, "sequence": sequence, "expert": expert}
    given = {name: size for name, size in sizes.items() if size is not None}
    ones = dict.fromkeys(sizes, 1) if given else {}
    return device_mesh(**{**ones, **given}, devices=devices)


def inference_place() -> Place:
    """Return the place that models sample and score on: `inference_mesh` and `logical_rules`."""
    return Place(inference_mesh(), logical_rules())


@contextmanager
def placed_on(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Tell the layers that are traced inside where their arrays are."""
    token = _PLACE.set(Place(mesh, rules))
    try:
        yield
    finally:
        _PLACE.reset(token)


def current_place() -> Place | None:
    """Return what `placed_on` told, or None where all is on one device."""
    place = _PLACE.get()
    return None if place is None or place.mesh.size == 1 else place


def spread(x: jax.Array, *names: str | None) -> jax.Array:
    """Return `x`, held split by its logical axes; as it is on one device.

    An axis whose length does not divide is split by the first of its mesh axes that it does divide into.
    """
    place = current_place()
    if place is None:
        return x
    spec = []
    for length, axes in zip(x.shape, mesh_axes(PartitionSpec(*names), place.rules), strict=True):
        kept = axes_of(axes)
        while length % math.prod(place.mesh.shape[axis] for axis in kept):
            kept = kept[:-1]
        spec.append(kept or None)
    return jax.lax.with_sharding_constraint(x, NamedSharding(place.mesh, PartitionSpec(*spec)))


def gathered(weight: jax.Array, names: tuple[str | None, ...], dtype: Any) -> jax.Array:
    """Return a weight in `dtype`, whole along its axis `embed`, as FSDP (ZeRO-3) computes with it.

    It is cast before it travels (arXiv 1910.02054, section 5.3), and its gradient goes back to where the
    weight is held, added up on the way. On one device it is only cast.
    """
    place = current_place()
    if place is None or "embed" not in names:
        return weight.astype(dtype)
    # Numbers in eight bits are frozen: they have no gradient.
    run = _gathered if jnp.issubdtype(weight.dtype, jnp.floating) else _gathered.fun
    return checkpoint_name(run(weight, place, names, dtype), GATHERED)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(
    weight: jax.Array, place: Place, names: tuple[str | None, ...], dtype: Any
) -> jax.Array:
    held = jax.lax.with_sharding_constraint(weight.astype(dtype), place.sharding(names))
    whole = tuple(None if name == "embed" else name for name in names)
    held = _half_way(held, place, names, sides=3)
    return jax.lax.with_sharding_constraint(held, place.sharding(whole))


def _gathered_forward(
    weight: jax.Array, place: Place, names: tuple[str | None, ...], dtype: Any
) -> tuple[jax.Array, jax.Array]:
    # The weight itself is kept for its dtype alone; it is there anyway.
    return _gathered(weight, place, names, dtype), weight


def _gathered_backward(
    place: Place, names: tuple[str | None, ...], dtype: Any, weight: jax.Array, g: jax.Array
) -> tuple[jax.Array]:
    g = _half_way(g, place, names, sides=2)
    return (jax.lax.with_sharding_constraint(g, place.sharding(names)).astype(weight.dtype),)


def _half_way(
    x: jax.Array, place: Place, names: tuple[str | None, ...], *, sides: int
) -> jax.Array:
    """Return `x`, held in the few large parts that a way from whole to `embed`'s parts, or back, leads by.

    Among all chips of a torus of 2 sides the TPU's compiler makes a reduce-scatter, and of 3 sides a gather
    too, of an all-reduce, which sends twice the bytes, even where `psum_scatter` asks for it. Among some of
    the chips it does not, and two steps send together what one would.

    Args:
      x: with the axes `names`.
      place, names: where it lies in the end.
      sides: of the smallest torus on which two steps are needed.
    """
    axes, devices = place.axes("embed"), place.mesh.devices
    slices = len({getattr(device, "slice_index", None) for device in devices.flat})
    parts = math.prod(place.mesh.shape[axis] for axis in axes)
    if len(axes) != 1 or parts * slices != devices.size or _torus_sides(devices) < sides:
        return x
    few = max(n for n in range(1, math.isqrt(parts) + 1) if parts % n == 0)
    mesh = Mesh(devices.reshape(slices, few, -1), ("slice", "few", "rest"))
    spec = PartitionSpec(*("few" if name == "embed" else None for name in names))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _torus_sides(devices: np.ndarray) -> int:
    """Return along how many sides of a TPU's torus devices differ, 0 for other devices."""
    if devices.flat[0].platform != "tpu":
        return 0
    return sum(len(set(side)) > 1 for side in zip(*(d.coords for d in devices.flat), strict=True))


_gathered.defvjp(_gathered_forward, _gathered_backward)
