"""Pytrees on the disk: Orbax, with a checksum of every file, by one process or by several together.

With several processes of `jax.distributed` the disk is one that all of them see, every function here
that takes a folder is called by all of them, and what fails in one raises the same error in all.
"""

import asyncio
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from aya_jax.data.files import atomic_write, fingerprint_file, require_space, told_plainly
from aya_jax.errors import AyaError
from aya_jax.sharding.processes import from_all, is_lead, together

CHECKSUMS = "checksums.json"
RESERVE = 1 << 20
# Leaves above this size are cut into chunks below it, and those of a stack at least at each layer.
CHUNK = 64 << 20
# GB of a tree on their way to the disk at a time beyond the copy of its arrays: above its largest shard.
IN_FLIGHT = 1

# Orbax tells every save, restore and failure through absl; a failure is raised as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)


_print = sys.unraisablehook


def _tell(fault: "sys.UnraisableHookArgs") -> None:
    """Print what is raised where nothing can catch it, but for what tells nothing.

    When a write fails Orbax closes the event loop of those beside it, and TensorStore raises for each, in threads of
    its own, that its loop is closed. The failure itself is raised.
    """
    if str(fault.exc_value) != "Event loop is closed":
        _print(fault)


sys.unraisablehook = _tell


def leaf_checksums(tree: Any) -> dict[str, str]:
    """Return the sha256 of each leaf (dtype, shape and bytes) by its path, sorted."""
    sums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        checksum = leaf_checksum(array.dtype, array.shape)
        checksum.update(array.tobytes())
        sums[leaf_name(path)] = checksum.hexdigest()
    return dict(sorted(sums.items()))


def leaf_name(path: Any, separator: str = "/") -> str:
    """Return the name of a leaf of jax's key path."""
    return jax.tree_util.keystr(path, simple=True, separator=separator)


def leaf_checksum(dtype: np.dtype, shape: tuple[int, ...]) -> Any:
    """Return the sha256 of a leaf, which its bytes in C order are still to be added to."""
    return hashlib.sha256(f"{dtype.name}{shape}".encode())


def _files(place: Path, folder: str = "") -> list[str]:
    """Return the files of a tree, or of one folder of it, by their paths in it."""
    found = (place / folder).rglob("*")
    return sorted(path.relative_to(place).as_posix() for path in found if path.is_file())


class TreeWriter:
    """Trees on their way to the disk, each as `directory/name` with its checksums beside it.

    Making one copies the arrays off the devices, each process its own shards; who made it may then
    change them, and has `finish` still to call, in any thread. Host memory holds one copy of the
    shards meanwhile, and for each tree about `IN_FLIGHT` GB more. A tree is whole when its checksums are there.
    """

    def __init__(self, directory: Path, trees: Mapping[str, Any]) -> None:
        """Copy the leaves of `trees`, by their names: arrays of NumPy's or jax's.

        Raises:
          AyaError: the disk has no room for them, or the place is not writable.
        """
        self.directory = directory
        self.names = list(trees)
        # One name a set of trees: a set may be written in the background while another is read.
        self._label = "+".join(trees)
        self._handlers: dict[str, ocp.PyTreeCheckpointHandler] = {}
        self._futures: list[Any] = []
        self._fault: Exception | None = None
        together(f"begin {self._label}", lambda: self._make_room(trees) if is_lead() else None)
        # What fails from here on in one process is told to the others in `finish`.
        try:
            for name, tree in trees.items():
                self._copy(name, jax.tree.map(_writable, tree))
        except Exception as error:
            self._fault = error

    def _make_room(self, trees: Mapping[str, Any]) -> None:
        # A checkpoint that cannot fit is not begun; its index and metadata are far below the reserve.
        size = sum(_nbytes(leaf) for leaf in jax.tree.leaves(dict(trees)))
        with told_plainly(self.directory):
            empty_place(self.directory, self.names)
            require_space(self.directory, size + RESERVE)
            for name in trees:
                (self.directory / name).mkdir()

    def _copy(self, name: str, tree: Any) -> None:
        largest = max((_shard_bytes(leaf) for leaf in jax.tree.leaves(tree)), default=0)
        limit = IN_FLIGHT + largest // 10**9
        handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=limit)
        place = epath.Path((self.directory / name).absolute())
        args = ocp.args.PyTreeSave(tree, save_args=jax.tree.map(_cut, tree))

        def copy() -> Any:
            return asyncio.run(handler.async_save(place, args=args))

        # In a thread of its own: a notebook's has an event loop already.
        with ThreadPoolExecutor(1) as thread:
            self._futures += thread.submit(copy).result() or []
        self._handlers[name] = handler

    def finish(self) -> None:
        """Wait until all is written, check-summed and listed.

        Raises:
          AyaError: the disk is full, the place not writable, or not the same one in all processes.
        """
        known = together(f"written {self._label}", self._written)
        together(f"listed {self._label}", lambda: self._list(known) if is_lead() else None)

    def _written(self) -> dict[str, dict[str, str]]:
        """Wait for this process's shards; return the checksums of the files that they are in."""
        if self._fault is not None:
            with told_plainly(self.directory / self.names[0]):
                raise self._fault
        with told_plainly(self.directory / self.names[0]):
            for future in self._futures:
                future.result()
            folder = _folder_of(jax.process_index())
            places = {name: self.directory / name for name in self.names}
            return {
                name: {file: fingerprint_file(place / file) for file in _files(place, folder)}
                for name, place in places.items()
            }

    def _list(self, known: list[dict[str, dict[str, str]]]) -> None:
        """Join what the processes wrote, and write the checksums of each tree's files beside it."""
        for name in self.names:
            place = self.directory / name
            with told_plainly(place):
                _require_seen(place, [sums[name] for sums in known])
                self._handlers[name].finalize(epath.Path(place.absolute()))
                sums = {file: checksum for own in known for file, checksum in own[name].items()}
                for file in set(_files(place)) - sums.keys():
                    sums[file] = fingerprint_file(place / file)
                write_listing(self.directory, name, sums)


def _folder_of(process: int) -> str:
    """Return the folder that Orbax writes a process's shards into."""
    return f"ocdbt.process_{process}"


def _require_seen(place: Path, known: list[dict[str, str]]) -> None:
    """Raise `AyaError` unless the files of all processes are where the lead sees them."""
    # An entry of our own makes a network file system ask for the folder's anew.
    probe = place / f".{os.getpid()}.tmp"
    probe.touch()
    probe.unlink()
    for process, files in enumerate(known):
        lost = [file for file in files if not (place / file).exists()]
        listed = not files or (place / _folder_of(process)) in set(place.iterdir())
        if lost or not listed:
            raise AyaError(
                f"{place}: what process {process} wrote is not seen by process 0; give a place on a "
                "file system that all hosts share"
            )


def _writable(leaf: Any) -> Any:
    """Return a leaf as Orbax takes it: of an array that each process holds whole, the lead's."""
    whole = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
    return np.asarray(leaf) if whole and jax.process_count() > 1 else leaf


def _nbytes(leaf: Any) -> int:
    return int(leaf.size) * leaf.dtype.itemsize


def _shard_bytes(leaf: Any) -> int:
    """Return the bytes of what is written at once."""
    if isinstance(leaf, jax.Array):
        return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    return _nbytes(leaf)


def write_tree(directory: Path, name: str, tree: Any) -> None:
    """Write `tree` as `directory/name`, with the checksums of its files beside it.

    Args:
      directory, name: where; what was there of that name is replaced.
      tree: arrays, or in several processes arrays of all of their devices.

    Raises:
      AyaError: the disk is full, or the place is not writable.
    """
    TreeWriter(directory, {name: tree}).finish()


def _cut(leaf: Any) -> ocp.SaveArgs:
    if _nbytes(leaf) <= CHUNK:
        return ocp.SaveArgs()
    # What is large and has three axes or more is a stack of the layers' matrices.
    return ocp.SaveArgs(chunk_byte_size=CHUNK, shard_axes=(0,) if leaf.ndim > 2 else ())


def _listing(directory: Path, name: str) -> Path:
    return directory / f"{name}.{CHECKSUMS}"


def empty_place(directory: Path, names: Sequence[str]) -> None:
    """Remove what is there of trees that are to be written: first what says that they are whole."""
    for name in names:
        _listing(directory, name).unlink(missing_ok=True)
        if (directory / name).exists():
            shutil.rmtree(directory / name)


def list_files(directory: Path, name: str) -> None:
    """Write the checksums of a tree's files beside it; several processes share the files out.

    Raises:
      AyaError: a file cannot be read, or the listing not written.
    """
    place = directory / name
    files = from_all(f"files {name}", _files(place) if is_lead() else None)[0]
    own = files[jax.process_index() :: jax.process_count()]

    def sums() -> dict[str, str]:
        with told_plainly(place):
            return {file: fingerprint_file(place / file) for file in own}

    parts = together(f"sums {name}", sums)
    whole = {file: checksum for part in parts for file, checksum in part.items()}
    together(
        f"listing {name}", lambda: write_listing(directory, name, whole) if is_lead() else None
    )


def write_listing(directory: Path, name: str, sums: Mapping[str, str]) -> None:
    """Write the checksums of a tree's files beside it, which says that the tree is whole."""
    text = json.dumps(dict(sorted(sums.items())), indent=1) + "\n"
    atomic_write(_listing(directory, name), text)


def stored_shapes(directory: Path, name: str) -> Any:
    """Return a tree on the disk as nested dicts of `ShapeDtypeStruct`s; its files are not checked."""
    handler = ocp.StandardCheckpointHandler()
    tree = handler.metadata(epath.Path((directory / name).absolute())).tree
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def read_tree(directory: Path, name: str, like: Any = None) -> Any:
    """Read what `write_tree` wrote, every file checked before Orbax sees it.

    Args:
      directory, name: as written.
      like: a tree of arrays or `ShapeDtypeStruct`s with shardings, to restore onto devices in
        that structure, each process its own shards; NumPy arrays in nested dicts if absent.

    Raises:
      AyaError: a file is missing, truncated or changed; the message names it.
    """
    check_files(directory, name)
    return restore_tree(directory, name, like)


def restore_tree(directory: Path, name: str, like: Any = None) -> Any:
    """Read a tree whose files are checked, as `read_tree` does."""
    if like is None:
        shapes = stored_shapes(directory, name)
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    place = epath.Path((directory / name).absolute())
    return ocp.StandardCheckpointHandler().restore(place, args=ocp.args.StandardRestore(like))


def check_files(directory: Path, name: str) -> None:
    """Raise `AyaError` unless a tree's files are those that were written; the message names one.

    Several processes share the files out between them, and all raise the same.
    """
    # The place in the listing comes first, so that the fault named is that of one process alone.
    faults = from_all(f"checked {name}", _fault(directory, name))
    found = sorted(fault for fault in faults if fault is not None)
    if found:
        raise AyaError(found[0][1])


def _fault(directory: Path, name: str) -> tuple[int, str] | None:
    """Return the first file of this process's share that is not as written: its number, and what to say."""
    try:
        expected = read_listing(directory, name)
    except AyaError as error:
        return -1, str(error)
    share = range(jax.process_index(), len(expected), jax.process_count())
    files = list(expected.items())
    for number in share:
        file, checksum = files[number]
        try:
            found = fingerprint_file(directory / name / file)
            fault = None if found == checksum else "is damaged"
        except FileNotFoundError:
            fault = "is missing"
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        if fault is not None:
            return number, file_fault(directory, name, file, fault)
    return None


def read_listing(directory: Path, name: str) -> dict[str, str]:
    """Return the checksums of a tree's files, by their paths in it.

    Raises:
      AyaError: they are not there, or cannot be read.
    """
    listing = _listing(directory, name)
    try:
        sums = json.loads(listing.read_text())
    except FileNotFoundError:
        raise AyaError(f"{listing}: no such file; {directory} holds no whole checkpoint") from None
    except (OSError, ValueError) as error:
        raise AyaError(f"{listing}: cannot be read ({error}); {_remedy(directory)}") from None
    if not isinstance(sums, dict):
        raise AyaError(
            f"{listing}: cannot be read (it must hold a JSON object); {_remedy(directory)}"
        )
    return sums


def file_fault(directory: Path, name: str, file: str, fault: str) -> str:
    """Return what to say of a file of a tree that is not as it was written, and what to do."""
    return f"{directory / name / file}: {fault}; {_remedy(directory)}"


def _remedy(directory: Path) -> str:
    return f"restore the checkpoint from a copy, or remove {directory} and make it again"
