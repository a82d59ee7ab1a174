"""Leaves on the disk that are read in parts, each file checked when it is first read from."""

import hashlib
import json
from collections.abc import Iterable
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import tensorstore as ts

from aya_jax.checkpoints.direct import File
from aya_jax.checkpoints.safetensors import array_in
from aya_jax.checkpoints.slices import LeafPath, chunk_file, open_leaves
from aya_jax.checkpoints.store import check_files, file_fault, read_listing
from aya_jax.data.files import fingerprint, fingerprint_file, told_plainly
from aya_jax.errors import AyaError
from aya_jax.sharding.processes import together


class CheckedLeaves:
    """The leaves of a tree that `write_tree` or `write_slices` wrote; several threads may read them.

    Where every chunk of a leaf is a file (what `write_slices` writes) a file is checked as it is first
    read from: the disk is read once. What Orbax packed into larger files (OCDBT) does not tell which of
    them hold a leaf: all are read and checked at first, and again as the leaves are.

    Attributes:
      leaves: TensorStores, by their paths; what is read of them directly is not checked.
      fingerprint: of the checksums of all files: equal for equal trees of one layout.
    """

    def __init__(self, directory: Path, name: str, *, once: bool = False) -> None:
        """Open a tree; several processes do it together. For `once` see `direct.File`.

        Raises:
          AyaError: a file is missing or damaged; the message names it.
        """
        self._directory, self._name, self._place = directory, name, directory / name
        self._once = once
        self._checked: set[str] = set()
        together(f"open {name}", self._open_listing)
        chunked = self._place / "_METADATA"
        if not chunked.is_file() or json.loads(chunked.read_text())["use_ocdbt"]:
            check_files(directory, name)
            self._checked = set(self._sums)
        with told_plainly(self._place):
            self.leaves: dict[LeafPath, ts.TensorStore] = open_leaves(directory, name)
        self.fingerprint = fingerprint(self._sums)

    def _open_listing(self) -> None:
        """Read what the files should be; those that are small and no chunks are checked now."""
        self._sums = read_listing(self._directory, self._name)
        # Each file's own: no two threads read one to check it.
        self._locks = {file: Lock() for file in self._sums}
        for file in self._sums:
            if not (self._place / file).is_file():
                raise self._fault(file, "is missing")
            if Path(file).name in ("_METADATA", ".zarray"):
                self._check(file)

    def _fault(self, file: str, fault: str) -> AyaError:
        return AyaError(file_fault(self._directory, self._name, file, fault))

    def _check(self, file: str, *content: Any) -> None:
        """Raise `AyaError` unless a file, whose whole content may be known, in parts, is what was written."""
        with self._locks[file]:
            if file in self._checked:
                return
            try:
                found = _checksum(content) if content else fingerprint_file(self._place / file)
            except OSError as error:
                raise self._fault(file, f"cannot be read ({error.strerror})") from None
            if found != self._sums.get(file):
                raise self._fault(file, "is damaged")
            self._checked.add(file)

    def read(
        self,
        path: LeafPath,
        index: tuple[int, ...],
        first: int,
        last: int,
        *,
        room: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return rows of a leaf: from `first` to before `last` of its axis after those of `index`.

        Args:
          path: of the leaf.
          index: of its first axes.
          first, last: the first row, and the one after the last.
          room: bytes that they are put in, uint8, if there are enough of them.

        Raises:
          AyaError: a file that they are in is damaged.
        """
        leaf = self.leaves[path]
        kind, stacked = leaf.dtype.numpy_dtype, len(index)
        shape = (last - first, *leaf.shape[stacked + 1 :])
        if room is not None and len(room) < prod(shape) * kind.itemsize:
            room = None
        out = array_in(room, shape, kind)
        if out.size:
            layout = _layout(leaf, stacked)
            if layout is None:
                self._check_chunks(path, leaf)
                part: Any = (*index, slice(first, last))
                out[...] = leaf[part].read().result()
            else:
                self._read_files(path, index, first, out, leaf.shape[stacked], *layout)
        return out

    def chunk_rows(self, path: LeafPath, stacked: int) -> int | None:
        """Return how many rows behind the first `stacked` axes a file has; None where a leaf's are in no such files."""
        layout = _layout(self.leaves[path], stacked)
        return None if layout is None else layout[0]

    def _check_chunks(self, path: LeafPath, leaf: ts.TensorStore) -> None:
        folder = ".".join(path) + "/"
        for file in self._sums:
            if file.startswith(folder):
                self._check(file)

    def _read_files(
        self,
        path: LeafPath,
        index: tuple[int, ...],
        first: int,
        out: np.ndarray,
        last: int,
        rows: int,
        axes: int,
    ) -> None:
        """Fill `out` from the files of a leaf of `last` rows, each file `rows` whole ones, as they stand."""
        target = memoryview(out.reshape(-1).view(np.uint8))
        row_bytes = out.nbytes // len(out)
        row = first
        while row < first + len(out):
            chunk = row // rows
            count = min((chunk + 1) * rows, first + len(out)) - row
            part = target[(row - first) * row_bytes : (row - first + count) * row_bytes]
            file = chunk_file(path, index, chunk, axes)
            # The last one has fewer rows, and is as large as the others.
            whole = row == chunk * rows and count in (rows, last - row)
            if not whole:
                self._check(file)
            self._fill(file, part, (row - chunk * rows) * row_bytes)
            if whole and file not in self._checked:
                rest = bytearray((rows - count) * row_bytes)
                if rest:
                    self._fill(file, memoryview(rest), len(part))
                self._check(file, part, rest)
            row += count

    def _fill(self, file: str, target: memoryview, start: int) -> None:
        try:
            with File(self._place / file, once=self._once) as opened:
                got = opened.read_into(target, start)
        except OSError as error:
            raise self._fault(file, f"cannot be read ({error.strerror})") from None
        if got < len(target):
            raise self._fault(file, "is damaged")


def _checksum(parts: Iterable[Any]) -> str:
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part)
    return checksum.hexdigest()


def _layout(leaf: ts.TensorStore, stacked: int) -> tuple[int, int] | None:
    """Return the rows of a chunk and how many axes rows have, where a chunk's file is plain rows."""
    told = leaf.spec().to_json()
    metadata = told.get("metadata", {})
    chunk = metadata.get("chunks", [])
    plain = (
        told["driver"] == "zarr"
        and told["kvstore"]["driver"] == "file"
        and metadata.get("compressor") is None
        and metadata.get("filters") is None
        and metadata.get("order") == "C"
        and metadata.get("dimension_separator", ".") == "."
        and "field" not in told
        and all(size == 1 for size in chunk[:stacked])
        and tuple(chunk[stacked + 1 :]) == tuple(leaf.shape[stacked + 1 :])
        and not str(metadata.get("dtype")).startswith(">")
    )
    if not plain or len(chunk) <= stacked:
        return None
    return chunk[stacked], len(chunk) - stacked - 1
