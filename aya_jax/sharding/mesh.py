"""One mesh with named axes, and the shardings that logical-axis rules give on it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import gin
import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aya_jax.errors import AyaError, nearest

Rules = tuple[tuple[str, Any], ...]

AXES = ("data", "fsdp", "tensor", "sequence", "expert")

# Batches are split over both data axes; parameters over `fsdp` on their hidden axis, and over
# `tensor` on heads, feed-forward and vocabulary, as in Megatron (arXiv 1909.08053); attention over
# `sequence` is in parts of the length, which go round a ring (arXiv 2310.01889).
DEFAULT_RULES: dict[str, Any] = {
    "batch": ("data", "fsdp"),
    "length": "sequence",
    "embed": "fsdp",
    "heads": "tensor",
    "kv": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "experts": "expert",
    "head": None,
    "layers": None,
}


@gin.configurable(denylist=["devices"])
def device_mesh(
    *,
    data: int = 1,
    fsdp: int = -1,
    tensor: int = 1,
    sequence: int = 1,
    expert: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Return the mesh over all devices; one axis may be -1 and takes what the others leave.

    Args:
      data, fsdp, tensor, sequence, expert: sizes of the axes.
      devices: what it is a mesh of, in the order of its rows; all of jax's if absent.

    Raises:
      AyaError: the sizes do not multiply to the number of devices, or `data` is no multiple of the
        number of TPU slices.
    """
    sizes = [data, fsdp, tensor, sequence, expert]
    given = jax.devices() if devices is None else devices
    count = len(given)
    known = math.prod(size for size in sizes if size > 0)
    possible = all(size == -1 or size > 0 for size in sizes) and sizes.count(-1) <= 1
    if not possible or count % known or (-1 not in sizes and known != count):
        raise AyaError(
            f"device_mesh: {dict(zip(AXES, sizes, strict=True))} does not fit {count} devices; "
            "the sizes must multiply to that number, and one may be -1"
        )
    shape = [count // known if size == -1 else size for size in sizes]
    return _arranged(given, shape)


def _arranged(devices: Sequence[jax.Device], shape: Sequence[int]) -> Mesh:
    """Return the mesh of a shape in which neighbours are near: on one host, along the links of a torus.

    Several TPU slices are joined by the data-centre network alone, which only `data` may cross.

    Raises:
      AyaError: `data` is no multiple of the number of slices.
    """
    if devices[0].platform != "tpu":
        return Mesh(np.asarray(devices).reshape(shape), AXES)
    slices = _slices(devices)
    if shape[0] % slices:
        raise AyaError(
            f"device_mesh.data is {shape[0]}; with {slices} slices it must be a multiple of {slices}: "
            "only gradients should cross the network between slices"
        )
    inner, outer = [shape[0] // slices, *shape[1:]], [slices, *[1] * (len(shape) - 1)]
    if slices == 1:
        made = create_device_mesh(inner, devices, allow_split_physical_axes=True)
    else:
        made = create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return Mesh(made, AXES)


def _slices(devices: Sequence[Any]) -> int:
    """Return how many TPU slices devices are of; of other devices 1."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", None) for device in devices})


def candidate_meshes(
    devices: np.ndarray, limits: Mapping[str, int], *, whole: bool = False
) -> list[Mesh]:
    """Return the meshes worth trying over some devices: by `fsdp`, `tensor`, `sequence` and `expert`.

    Several slices are along `data`, each a part of it.

    Args:
      devices: all of them, in the order of the mesh's rows.
      limits: how far the default rules' logical axes `kv`, `embed` and `experts` divide.
      whole: whether those by `data` in place of `fsdp` count too, on which no parameter is gathered.
    """
    meshes, slices = [], _slices(devices.tolist())
    for tensor, sequence, expert in product((1, 2, 4, 8, 16), (1, 2, 4), {1, limits["experts"]}):
        rows, rest = divmod(devices.size, tensor * sequence * expert)
        if rest or not rows or rows % slices or limits["kv"] % tensor:
            continue
        inner = (tensor, sequence, expert)
        if not limits["embed"] % (rows // slices):
            meshes.append(_arranged(devices.tolist(), (slices, rows // slices, *inner)))
        if whole and rows > slices:
            meshes.append(_arranged(devices.tolist(), (rows, 1, *inner)))
    return meshes


@gin.configurable
def logical_rules(*, rules: Mapping[str, Any] | None = None) -> Rules:
    """Return the rules from logical axes to mesh axes; `rules` overrides single defaults.

    Raises:
      AyaError: an unknown logical axis or mesh axis.
    """
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in (rules or {}).items()
    }
    for name, value in given.items():
        if name not in DEFAULT_RULES:
            hint = nearest(name, DEFAULT_RULES)
            raise AyaError(f"logical_rules: no array has a logical axis {name!r}{hint}")
        for axis in axes_of(value):
            if axis not in AXES:
                hint = nearest(str(axis), AXES)
                raise AyaError(f"logical_rules: {name!r}: the mesh has no axis {axis!r}{hint}")
    return tuple({**DEFAULT_RULES, **given}.items())


def axes_of(rule: Any) -> tuple[str, ...]:
    """Return the mesh axes that a rule names: none, one or several."""
    return () if rule is None else rule if isinstance(rule, tuple) else (rule,)


def logical_spec(names: Iterable[str | None]) -> PartitionSpec:
    """Return the logical axes of an array, for `shardings`; None is an axis that is never split."""
    return PartitionSpec(*names)


def mesh_axes(logical: PartitionSpec, rules: Rules) -> PartitionSpec:
    """Return the mesh axes of one array's logical axes; of two that want the same, one gets it.

    The rule that comes first wins; the other axis, and one without a rule, is not split.
    """
    places: list[Any] = [None] * len(logical)
    taken: set[str] = set()
    for name, axes in rules:
        wanted = set(axes_of(axes))
        if name in logical and not wanted & taken:
            places[tuple(logical).index(name)] = axes
            taken |= wanted
    return PartitionSpec(*places)


def shardings(logical_specs: Any, mesh: Mesh, rules: Rules) -> Any:
    """Return the `NamedSharding` of every leaf of a pytree of logical `PartitionSpec`s.

    Args:
      logical_specs: see `models.decoder.logical_axes`.
      mesh: see `device_mesh`.
      rules: see `logical_rules`.
    """
    return jax.tree.map(
        lambda logical: NamedSharding(mesh, mesh_axes(logical, rules)),
        logical_specs,
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: Rules) -> NamedSharding:
    """Return the sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(dict(rules)["batch"]))
