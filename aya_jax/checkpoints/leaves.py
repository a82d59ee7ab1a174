"""Leaves on the disk a part at a time: in blocks, hashed by several processes, or onto devices."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from aya_jax.checkpoints.slices import open_leaves
from aya_jax.checkpoints.store import leaf_checksum
from aya_jax.data.files import told_plainly
from aya_jax.sharding.processes import together

# Bytes of a leaf in memory at a time.
BLOCK = 256 << 20

Index = tuple[slice, ...]


def blocks(shape: Sequence[int], chunk: Sequence[int], itemsize: int) -> Iterator[Index]:
    """Yield the parts of an array of at most `BLOCK` bytes, which one after another are its C order.

    Args:
      shape: of the array.
      chunk: the shape of what is stored together; parts are whole chunks where `BLOCK` has room.
      itemsize: bytes of an entry.
    """
    if not shape:
        yield ()
        return
    room = BLOCK // (itemsize * max(1, prod(shape[1:])))
    if room < 1:
        inner = list(blocks(shape[1:], chunk[1:], itemsize))
        for i in range(shape[0]):
            for part in inner:
                yield (slice(i, i + 1), *part)
        return
    rows = room - room % chunk[0] if room >= chunk[0] else room
    for first in range(0, shape[0], rows):
        yield (
            slice(first, min(first + rows, shape[0])),
            *(slice(0, size) for size in shape[1:]),
        )


def shared_out(sizes: Mapping[Any, int]) -> list[list[Any]]:
    """Return the keys that each process is to do: the largest first, each to who has least to do."""
    shares: list[list[Any]] = [[] for _ in range(jax.process_count())]
    loads = [0] * len(shares)
    for key in sorted(sizes, key=lambda key: (-sizes[key], key)):
        least = loads.index(min(loads))
        shares[least].append(key)
        loads[least] += sizes[key]
    return shares


def stored_checksums(directory: Path, name: str) -> dict[str, str]:
    """Return what `leaf_checksums` would of a tree on the disk, of which a block at a time is in memory.

    Several processes share the leaves out between them. The files are not checked.

    Raises:
      AyaError: a process cannot read its leaves.
    """
    leaves = open_leaves(directory, name)
    shares = shared_out({path: _nbytes(leaf) for path, leaf in leaves.items()})

    def own() -> dict[str, str]:
        with told_plainly(directory / name):
            return {"/".join(path): _checksum(leaves[path]) for path in shares[jax.process_index()]}

    sums = {}
    for each in together(f"checksums {name}", own):
        sums.update(each)
    return dict(sorted(sums.items()))


def _nbytes(leaf: ts.TensorStore) -> int:
    return leaf.dtype.numpy_dtype.itemsize * prod(leaf.shape)


def _checksum(leaf: ts.TensorStore) -> str:
    dtype = leaf.dtype.numpy_dtype
    checksum = leaf_checksum(dtype, tuple(leaf.shape))
    chunk: Any = leaf.chunk_layout.read_chunk.shape
    for part in blocks(leaf.shape, chunk, dtype.itemsize):
        block = np.ascontiguousarray(leaf[part].read().result())
        checksum.update(block.reshape(-1).view(np.uint8))
    return checksum.hexdigest()


def on_devices(leaf: ts.TensorStore, dtype: Any = None, sharding: Any = None) -> jax.Array:
    """Return a leaf on devices; each process reads only what its own hold.

    Args:
      leaf: see `open_leaves`.
      dtype: of the array; that of the leaf if absent.
      sharding: where; the default device if absent.
    """
    kind = np.dtype(dtype or leaf.dtype.numpy_dtype)
    shape = tuple(leaf.shape)

    def read(index: Index) -> np.ndarray:
        return leaf[index].read().result().astype(kind, copy=False)

    if sharding is None:
        return jnp.asarray(read(tuple(slice(0, size) for size in shape)))
    parts: dict[Hashable, np.ndarray] = {}
    box = _box(sharding.addressable_devices_indices_map(shape).values(), shape)
    if box is not None:
        near = read(box)

    def part(index: Any) -> np.ndarray:
        place = tuple(each.indices(size)[:2] for each, size in zip(index, shape, strict=True))
        if place not in parts:
            if box is None:
                parts[place] = read(tuple(slice(*each) for each in place))
            else:
                starts = [each.start for each in box]
                parts[place] = near[
                    tuple(
                        slice(first - start, last - start)
                        for (first, last), start in zip(place, starts, strict=True)
                    )
                ]
        return parts[place]

    return jax.make_array_from_callback(shape, sharding, part)


def _box(indices: Any, shape: tuple[int, ...]) -> Index | None:
    """Return the part of an array that parts of it make up, None if they leave holes.

    Reading it at once decodes each stored chunk once, however many devices share it.
    """
    places = {
        tuple(each.indices(size)[:2] for each, size in zip(index, shape, strict=True))
        for index in indices
    }
    box = tuple(
        slice(min(first for first, _ in axis), max(last for _, last in axis))
        for axis in zip(*places, strict=True)
    )
    held = sum(prod(last - first for first, last in place) for place in places)
    return box if prod(each.stop - each.start for each in box) == held else None
