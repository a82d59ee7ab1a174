"""What devices send to each other in a compiled program, by kind and by axis of the mesh."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from aya_jax.planning.hlo import Instruction, Module, array_bytes, parts_of

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_NUMBERS = r"\d+(?:,\d+)*"


@dataclass(frozen=True)
class Collective:
    """One kind of exchange among the same groups of devices, over a whole run of the program.

    Attributes:
      kind: of `KINDS`.
      axes: the axes of the mesh along which the devices of a group differ.
      devices: how many there are in a group.
      group: the places in the mesh, row by row, of one of the groups.
      count: how often it runs.
      bytes: of the whole arrays that are gathered, reduced or moved, on one device.
      sent_bytes: what one device sends at least: of `n` devices a share of (n-1)/n of the array, twice
        that to reduce it for all (arXiv 1909.08053 counts so), the whole of it to move it on.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    group: tuple[int, ...]
    count: int
    bytes: int
    sent_bytes: float


def find_collectives(module: Module, mesh: Mesh, *, unknown: int = 1) -> list[Collective]:
    """Return what is exchanged in one run of a program, the most bytes first.

    Args:
      module: the compiled program.
      mesh: that it is compiled for.
      unknown: see `Module.runs`.
    """
    shape, names = tuple(mesh.shape.values()), tuple(mesh.shape)
    chains: set[str] = set()
    sums: dict[tuple[str, tuple[str, ...], tuple[int, ...]], list[float]] = {}

    def add(kind: str, groups: Sequence[Sequence[int]], times: int, size: int) -> None:
        key = (kind, _axes(groups, shape, names), tuple(groups[0]))
        found = sums.setdefault(key, [0, 0, 0.0])
        found[0] += times
        found[1] += times * size
        found[2] += times * size * _share(kind, len(groups[0]))

    for computation, instruction, times in module.runs(unknown):
        kind = instruction.opcode.removesuffix("-start")
        across = _kind_across_slices(instruction)
        if (across or kind) not in KINDS or not times:
            continue
        if across:
            add(across, _across_slices(mesh), times, array_bytes(parts_of(instruction.shape)[0])[0])
            continue
        # A TPU's gather in the background is written down in every part of the work it runs beside.
        chain = re.search(r'chain_id="(\d+)"', instruction.rest)
        if chain:
            if f"{kind} {chain[1]}" in chains:
                continue
            chains.add(f"{kind} {chain[1]}")
        groups = device_groups(instruction, mesh.size)
        if len(groups[0]) < 2:
            continue
        size = _array(instruction, kind, len(groups[0]))
        # A TPU reduces and keeps a part in one: a fusion of a reduction and a slice.
        if kind == "all-reduce" and "all-reduce-scatter" in computation:
            kind = "reduce-scatter"
        add(kind, groups, times, size)
    made = [
        Collective(kind, axes, len(group), group, int(count), int(size), sent)
        for (kind, axes, group), (count, size, sent) in sums.items()
    ]
    return sorted(made, key=lambda c: -c.sent_bytes)


def _kind_across_slices(instruction: Instruction) -> str | None:
    """Return what kind of exchange between TPU slices begins here, which is written as a `send`, or None."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    if instruction.opcode != "send" or not found:
        return None
    return found[1].lower().replace("_", "-")


def _across_slices(mesh: Mesh) -> list[list[int]]:
    """Return the groups of devices that are at the same place of every slice."""
    places: dict[int, list[int]] = {}
    for place, device in enumerate(mesh.devices.flat):
        places.setdefault(device.slice_index, []).append(place)
    return [list(group) for group in zip(*places.values(), strict=True)]


def _array(instruction: Instruction, kind: str, devices: int) -> int:
    """Return the bytes of the whole arrays, from the shape of the result."""
    shape = instruction.shape
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # Begun in the background, the result holds the arguments too, then the result, then signals.
        arguments, results, *_ = parts_of(shape)
        return sum(array_bytes(results if kind == "all-gather" else arguments))
    return sum(array_bytes(shape)) * (devices if kind == "reduce-scatter" else 1)


def _share(kind: str, devices: int) -> float:
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (devices - 1) / devices


def _axes(
    groups: Sequence[Sequence[int]], shape: tuple[int, ...], names: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the axes along which devices of one group differ, in the order of the mesh."""
    different: set[int] = set()
    for group in groups:
        places = np.array(np.unravel_index(np.asarray(group), shape))
        different |= set(np.flatnonzero((places != places[:, :1]).any(1)))
    return tuple(name for i, name in enumerate(names) if i in different)


def device_groups(instruction: Instruction, count: int) -> list[list[int]]:
    """Return which devices a collective joins, by their places in the mesh, row by row.

    Args:
      instruction: the collective.
      count: of all devices.

    Raises:
      ValueError: its groups are written in a way that is not known.
    """
    pairs = instruction.attribute("source_target_pairs")
    if pairs is not None:
        return [list(map(int, p.split(","))) for p in re.findall(r"\{(\d+,\d+)\}", pairs)] or [[0]]
    tail = instruction.rest[instruction.rest.find("replica_groups=") :]
    text = tail.removeprefix("replica_groups=")
    if text.startswith("{"):
        listed = re.match(rf"\{{(?:\{{{_NUMBERS}\}},?)*\}}", text)
        groups = (
            [list(map(int, g.split(","))) for g in re.findall(_NUMBERS, listed[0])]
            if listed
            else []
        )
        return groups or [list(range(count))]
    iota = re.match(rf"\[({_NUMBERS})\]<=\[({_NUMBERS})\](?:T\(({_NUMBERS})\))?", text)
    if iota:
        order = _iota(iota[2], iota[3])
        groups_count, size = map(int, iota[1].split(","))
        return order.reshape(groups_count, size).tolist()
    if text.startswith("mesh["):
        return _mesh_groups(text)
    raise ValueError(f"replica groups in a form that is not known: {text[:80]}")


def _iota(sides: str, transposed: str | None) -> np.ndarray:
    shape = tuple(map(int, sides.split(",")))
    order = np.arange(int(np.prod(shape))).reshape(shape)
    return order.transpose(tuple(map(int, transposed.split(",")))) if transposed else order


def _mesh_groups(text: str) -> list[list[int]]:
    """Read groups such as `mesh['a'=4,'b'=2] {'b'}`: those that differ along some axes.

    `'a':(2)2` is a part of an axis: of its 4 places the inner 2, with 2 outside of them.
    """
    found = re.match(
        r"mesh\[([^\]]*)\]"
        r"(?:, device_ids=\((?:\[[\d,]*\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}",
        text,
    )
    if not found:
        raise ValueError(f"replica groups in a form that is not known: {text[:80]}")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
    count = int(np.prod(list(sizes.values())))
    order = _iota(found[2], found[3]) if found[2] else np.arange(count)
    parts = {name: (1, size, 1) for name, size in sizes.items()}
    joined = set()
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found[4]):
        joined.add(name)
        if before:
            parts[name] = (int(before), int(size), sizes[name] // (int(before) * int(size)))
    order = order.reshape([side for part in parts.values() for side in part])
    # Each axis is three: what is outside of the group, the group, and what is inside of it.
    inner = [3 * i + 1 for i, name in enumerate(parts) if name in joined]
    outer = [i for i in range(order.ndim) if i not in inner]
    size = int(np.prod([order.shape[i] for i in inner]))
    return order.transpose(outer + inner).reshape(-1, size).tolist()
