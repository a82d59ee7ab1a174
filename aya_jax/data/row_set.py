"""A row set: the arrays of a training on a disk, written once and read where they are needed."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from aya_jax.data.files import atomic_directory, atomic_write, fingerprint_file, told_plainly

# What the folder holds beside a file of plain bytes for each array.
LIST = "rows.json"


def write_rows(folder: Path, key: str, parts: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write arrays, given in parts, as one whole row set or none; one at `folder` is replaced.

    No more than a part is in memory.

    Args:
      folder: where.
      key: tells one content from another; see `is_whole`.
      parts: of the rows, at least one; the same arrays in each, alike but for their first axes.

    Raises:
      AyaError: the disk is full, or the place not writable; or what making a part raises.
    """
    with atomic_directory(folder, replace=True) as partial, ExitStack() as opened:
        files: dict[str, BinaryIO] = {}
        arrays: dict[str, dict[str, Any]] = {}
        hashes: dict[str, Any] = {}
        for part in parts:
            for name, array in part.items():
                if name not in files:
                    files[name] = opened.enter_context(open(partial / name, "wb"))
                    hashes[name] = hashlib.sha256()
                    arrays[name] = {"dtype": array.dtype.str, "shape": [0, *array.shape[1:]]}
                data = np.ascontiguousarray(array).data
                files[name].write(data)
                hashes[name].update(data)
                arrays[name]["shape"][0] += len(array)
        for name, file in files.items():
            file.flush()
            arrays[name]["sha256"] = hashes[name].hexdigest()
        atomic_write(partial / LIST, json.dumps({"key": key, "arrays": arrays}, indent=1))


def is_whole(folder: Path, key: str) -> bool:
    """Return whether a row set of this key is there, every byte of it as it was written."""
    try:
        listed = json.loads((folder / LIST).read_text("utf-8"))
        return listed["key"] == key and all(
            fingerprint_file(folder / name) == array["sha256"]
            for name, array in listed["arrays"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_rows(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a whole row set, read-only; a row is read from the disk when it is asked for.

    Raises:
      AyaError: the folder cannot be read.
    """
    with told_plainly(folder):
        listed = json.loads((folder / LIST).read_text("utf-8"))
        return {
            name: np.memmap(folder / name, array["dtype"], "r", shape=tuple(array["shape"]))
            for name, array in listed["arrays"].items()
        }
