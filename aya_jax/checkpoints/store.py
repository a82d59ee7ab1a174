"""Pytrees on the disk: Orbax, with a checksum of every file."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from aya_jax.data.files import atomic_write, fingerprint_file, require_space, told_plainly
from aya_jax.errors import AyaError

CHECKSUMS = "checksums.json"
RESERVE = 1 << 20
# Leaves above this size are cut into chunks below it, and those of a stack at least at each layer.
CHUNK = 64 << 20

# Orbax tells every save, restore and failure through absl; a failure is raised as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def leaf_checksums(tree: Any) -> dict[str, str]:
    """Return the sha256 of each leaf (dtype, shape and bytes) by its path, sorted."""
    sums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        checksum = leaf_checksum(array.dtype, array.shape)
        checksum.update(array.tobytes())
        sums[jax.tree_util.keystr(path, simple=True, separator="/")] = checksum.hexdigest()
    return dict(sorted(sums.items()))


def leaf_checksum(dtype: np.dtype, shape: tuple[int, ...]) -> Any:
    """Return the sha256 of a leaf, which its bytes in C order are still to be added to."""
    return hashlib.sha256(f"{dtype.name}{shape}".encode())


def _file_checksums(place: Path) -> dict[str, str]:
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): fingerprint_file(path) for path in files}


def write_tree(directory: Path, name: str, tree: Any) -> None:
    """Write `tree` as `directory/name`, with the checksums of its files beside it.

    Raises:
      AyaError: the disk is full, or the place is not writable.
    """
    place = directory / name
    # A checkpoint that cannot fit is not begun; its index and metadata are far below the reserve.
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    require_space(directory, size + RESERVE)
    with told_plainly(place), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(place.absolute(), tree, force=True, save_args=jax.tree.map(_cut, tree))
    list_files(directory, name)


def _cut(leaf: Any) -> ocp.SaveArgs:
    if leaf.size * leaf.dtype.itemsize <= CHUNK:
        return ocp.SaveArgs()
    # What is large and has three axes or more is a stack of the layers' matrices.
    return ocp.SaveArgs(chunk_byte_size=CHUNK, shard_axes=(0,) if leaf.ndim > 2 else ())


def list_files(directory: Path, name: str) -> None:
    """Write the checksums of a tree's files beside it."""
    sums = _file_checksums(directory / name)
    atomic_write(directory / f"{name}.{CHECKSUMS}", json.dumps(sums, indent=1) + "\n")


def read_tree(directory: Path, name: str, like: Any = None) -> Any:
    """Read what `write_tree` wrote, every file checked before Orbax sees it.

    Args:
      directory, name: as written.
      like: a tree of arrays or `ShapeDtypeStruct`s with shardings, to restore onto devices in
        that structure; NumPy arrays in nested dicts if absent.

    Raises:
      AyaError: a file is missing, truncated or changed; the message names it.
    """
    check_files(directory, name)
    place = directory / name
    with ocp.StandardCheckpointer() as checkpointer:
        if like is None:
            shapes = checkpointer.metadata(place.absolute()).item_metadata.tree
            like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
        return checkpointer.restore(place.absolute(), like)


def check_files(directory: Path, name: str) -> None:
    """Raise `AyaError` unless a tree's files are those that were written; the message names one."""
    place = directory / name
    listing = directory / f"{name}.{CHECKSUMS}"
    try:
        expected = json.loads(listing.read_text())
    except FileNotFoundError:
        raise AyaError(f"{listing}: no such file; {directory} holds no whole checkpoint") from None
    except (OSError, ValueError) as error:
        raise AyaError(f"{listing}: cannot be read ({error})") from None
    if not isinstance(expected, dict):
        raise AyaError(f"{listing}: cannot be read (it must hold a JSON object)")
    actual = _file_checksums(place)
    for file, checksum in expected.items():
        if actual.get(file) != checksum:
            fault = "is damaged" if file in actual else "is missing"
            raise AyaError(
                f"{place / file}: {fault}; restore the checkpoint from a copy, or remove {directory} "
                "and make it again"
            )
