"""Trees on the disk slice by slice, for models that no memory holds."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from aya_jax.checkpoints.store import CHUNK, RESERVE, check_files, empty_place, list_files
from aya_jax.data.files import require_space, told_plainly
from aya_jax.sharding.processes import barrier, is_lead, together

LeafPath = tuple[str, ...]


class Leaf(NamedTuple):
    """A leaf to be written: the first `stacked` axes of its shape count layers, or experts in them.

    At least one axis is not stacked.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    stacked: int

    @property
    def nbytes(self) -> int:
        """Bytes of the whole leaf."""
        return self.dtype.itemsize * prod(self.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """The shape of what is stored together: of one layer, as many rows as `CHUNK` holds."""
        row = self.dtype.itemsize * prod(self.shape[self.stacked + 1 :])
        rows = min(self.shape[self.stacked], max(1, CHUNK // row))
        return (*[1] * self.stacked, rows, *self.shape[self.stacked + 1 :])


@contextmanager
def write_slices(
    directory: Path, name: str, leaves: Mapping[LeafPath, Leaf]
) -> Iterator[dict[LeafPath, ts.TensorStore]]:
    """Write a tree that is never in memory: yield its leaves, TensorStores to be filled.

    What comes of it `read_tree` reads, as what `write_tree` wrote. Several processes each fill a part
    of it, whole chunks of a leaf; no two the same one.

    Args:
      directory, name: as in `write_tree`.
      leaves: by their paths in nested dicts.

    Raises:
      AyaError: the disk is full, or the place is not writable.
    """
    place = directory / name
    together(
        f"begin slices {name}", lambda: make_frame(directory, name, leaves) if is_lead() else None
    )
    with told_plainly(place):
        yield open_frame(directory, name, leaves)
    barrier(f"slices {name}")
    list_files(directory, name)


def open_frame(
    directory: Path, name: str, leaves: Iterable[LeafPath]
) -> dict[LeafPath, ts.TensorStore]:
    """Return the leaves that `make_frame` made, to be filled: what is written is on the disk when told so."""
    place = directory / name
    return {
        path: ts.open(
            {"driver": "zarr", "kvstore": _file(place / ".".join(path))}, read=True, write=True
        ).result()
        for path in leaves
    }


def make_frame(directory: Path, name: str, leaves: Mapping[LeafPath, Leaf]) -> None:
    """Make a tree whose leaves have no content yet; what was there of its name is replaced.

    Raises:
      AyaError: the disk has no room for the leaves, or the place is not writable.
    """
    place = directory / name
    with told_plainly(place):
        empty_place(directory, [name])
        require_space(directory, sum(leaf.nbytes for leaf in leaves.values()) + RESERVE)
        place.mkdir()
        # Orbax writes the tree around leaves of one number each; they make room for the real ones.
        frame = nested({path: np.zeros((), leaf.dtype) for path, leaf in leaves.items()})
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
        handler.save(epath.Path(place.absolute()), args=ocp.args.PyTreeSave(frame))
        for path, leaf in leaves.items():
            file = place / ".".join(path)
            shutil.rmtree(file)
            ts.open(
                {
                    "driver": "zarr",
                    "kvstore": _file(file),
                    "metadata": {"chunks": leaf.chunks, "compressor": None},
                },
                create=True,
                dtype=leaf.dtype.name,
                shape=leaf.shape,
            ).result()


def _file(path: Path) -> dict[str, str]:
    return {"driver": "file", "path": f"{path.absolute()}/"}


def chunk_file(path: LeafPath, index: tuple[int, ...], chunk: int, axes: int) -> str:
    """Return the name of the file of a chunk, as zarr has it.

    Args:
      path: of the leaf.
      index: of its first, stacked axes.
      chunk: its number along the rows.
      axes: how many axes a row has.
    """
    return f"{'.'.join(path)}/{'.'.join(map(str, (*index, chunk, *[0] * axes)))}"


def nested(leaves: Mapping[LeafPath, Any]) -> dict[str, Any]:
    """Return the nested dicts that have each leaf at its path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def open_slices(directory: Path, name: str) -> dict[LeafPath, ts.TensorStore]:
    """Return the leaves of a tree on the disk as TensorStores, which read what they are asked for.

    Every file is checked first.

    Raises:
      AyaError: a file is missing, truncated or changed; the message names it.
    """
    check_files(directory, name)
    return open_leaves(directory, name)


def open_leaves(directory: Path, name: str) -> dict[LeafPath, ts.TensorStore]:
    """Return what `open_slices` does, of a tree whose files need no check."""
    place = directory / name
    told = json.loads((place / "_METADATA").read_text())
    stores = {}
    for entry in told["tree_metadata"].values():
        path = tuple(str(key["key"]) for key in entry["key_metadata"])
        kvstore: dict[str, Any] = _file(place)
        if told["use_ocdbt"]:
            kvstore = {"driver": "ocdbt", "base": kvstore}
        kvstore["path"] = kvstore.get("path", "") + ".".join(path) + "/"
        driver = "zarr3" if told["use_zarr3"] else "zarr"
        stores[path] = ts.open({"driver": driver, "kvstore": kvstore}, read=True).result()
    return stores
