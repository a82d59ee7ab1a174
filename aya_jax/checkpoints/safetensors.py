"""Directories of safetensors files: read in slices, written tensor by tensor.

A file is the length of its header (8 bytes, little endian), the header (JSON: for each tensor its
dtype, shape and place behind the header), and the tensors' bytes in C order, without gaps. A
directory has one `model.safetensors`, or several files and an index that names each tensor's file.
Source: https://huggingface.co/docs/safetensors, "Format".
"""

import itertools
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from aya_jax.checkpoints.direct import File
from aya_jax.errors import AyaError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Bytes at a time, where a tensor need not be held whole.
BLOCK = 64 << 20
STRIP = 64
# As the safetensors library: a longer header is no header.
MAX_HEADER = 100_000_000

Range = tuple[int, int]
Put = Callable[[str, np.ndarray], None]


class Entry(NamedTuple):
    """A tensor of a file: where its bytes are, counted from the file's start."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


class Safetensors:
    """The tensors of a directory, `tensors` by their names; a context manager that closes the files.

    Only the headers are read when it is made, and all that they say is checked. With `single` that one
    file is read, whatever else the directory has; for `once` see `direct.File`.

    Raises:
      AyaError: no safetensors, or a file that is missing, truncated or damaged, or does not hold what
        the index says.
    """

    def __init__(
        self, directory: str | Path, single: str | None = None, *, once: bool = False
    ) -> None:
        self.directory = Path(directory)
        self.tensors: dict[str, Entry] = {}
        self._once, self._open = once, dict[Path, File]()
        with ExitStack() as stack:
            stack.callback(self.close)
            shards = {single: None} if single else _shards(self.directory)
            for name, listed in shards.items():
                self._add(self.directory / name, listed)
            stack.pop_all()

    def __enter__(self) -> "Safetensors":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, in the order of their names."""
        return tuple(sorted(self._open))

    def _add(self, path: Path, listed: set[str] | None) -> None:
        try:
            file = self._open[path] = File(path, once=self._once)
        except FileNotFoundError:
            raise AyaError(f"{path}: no such file; fetch the model again") from None
        except OSError as error:
            raise AyaError(f"{path}: cannot be read ({error.strerror})") from None
        entries = _entries(path, file)
        if listed is not None:
            for name in sorted(listed - entries.keys()):
                raise AyaError(f"{path}: has no tensor '{name}', which {INDEX} says is in it")
            for name in sorted(entries.keys() - listed):
                raise AyaError(f"{path}: holds tensor '{name}', which {INDEX} does not say")
        self.tensors |= entries

    def read(
        self,
        name: str,
        shape: Sequence[int] | None = None,
        ranges: Sequence[Range] | None = None,
        *,
        room: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return a tensor, or a part of it; nothing but that part is read.

        Args:
          name: of the tensor.
          shape: any of the same size, which the tensor is seen in; its own if absent.
          ranges: the first index and the one after the last, of each axis of `shape`; all if absent.
          room: bytes that the part is put in, uint8, at least as many as it has; new ones if absent.

        Returns:
          An array in C order, `[stop - start for start, stop in ranges]`, in the tensor's dtype.

        Raises:
          AyaError: the file is truncated, or cannot be read.
        """
        entry = self.tensors[name]
        shape = entry.shape if shape is None else tuple(shape)
        ranges = [(0, size) for size in shape] if ranges is None else ranges
        out = array_in(room, [stop - start for start, stop in ranges], entry.dtype)
        if out.size:
            target = memoryview(out.reshape(-1).view(np.uint8))
            done = 0
            for first, count in _runs(shape, ranges):
                size = count * entry.dtype.itemsize
                start = entry.start + first * entry.dtype.itemsize
                self._fill(entry.file, target[done : done + size], start)
                done += size
        return out

    def _fill(self, path: Path, target: memoryview, start: int) -> None:
        try:
            got = self._open[path].read_into(target, start)
        except OSError as error:
            raise AyaError(f"{path}: cannot be read ({error.strerror})") from None
        if got < len(target):
            raise AyaError(f"{path}: is truncated; fetch it again")


def array_in(room: np.ndarray | None, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return an array in bytes, uint8, that may be more than it needs; in new ones if absent."""
    if room is None:
        return np.empty(shape, dtype)
    return room[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def _runs(shape: Sequence[int], ranges: Sequence[Range]) -> Iterator[Range]:
    """Yield (first element, number of elements) of each contiguous run of a part of an array."""
    axis = len(shape)
    while axis and ranges[axis - 1] == (0, shape[axis - 1]):
        axis -= 1
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    if not axis:
        yield 0, math.prod(shape)
        return
    start, stop = ranges[axis - 1]
    stride = strides[axis - 1]
    for index in itertools.product(*(range(*each) for each in ranges[: axis - 1])):
        first = sum(i * step for i, step in zip(index, strides, strict=False))
        yield first + start * stride, (stop - start) * stride


def _load_object(path: Path, text: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object that has no key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise ValueError("a name occurs twice")
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique)
        if not isinstance(content, dict):
            raise ValueError("it must be a JSON object")
    except (ValueError, RecursionError) as error:
        raise AyaError(f"{path}: {what} is damaged ({error}); fetch it again") from None
    return content


def _shards(directory: Path) -> dict[str, set[str] | None]:
    """Return the names of the files, each with the tensors that the index says it has."""
    if (directory / SINGLE).is_file():
        return {SINGLE: None}
    path = directory / INDEX
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise AyaError(
            f"{directory}: has neither {SINGLE} nor {INDEX}; other formats are not read"
        ) from None
    except OSError as error:
        raise AyaError(f"{path}: cannot be read ({error.strerror})") from None
    listed = _load_object(path, text, "the index").get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise AyaError(f"{path}: the index is damaged (it has no weight_map); fetch it again")
    shards: dict[str, set[str] | None] = {}
    for tensor, file in listed.items():
        is_name = isinstance(file, str) and Path(file).name == file
        if not is_name or not file.endswith(".safetensors"):
            raise AyaError(
                f"{path}: tensor '{tensor}' is in {file!r}, no name of a safetensors file"
            )
        names = shards.setdefault(file, set())
        assert names is not None
        names.add(tensor)
    return shards


def _entries(path: Path, file: File) -> dict[str, Entry]:
    """Read and check the header of a file."""
    size = os.fstat(file.descriptor).st_size
    head = os.pread(file.descriptor, 8, 0)
    if len(head) < 8:
        raise AyaError(f"{path}: is truncated ({size} bytes); fetch it again")
    (length,) = struct.unpack("<Q", head)
    if length > MAX_HEADER:
        raise AyaError(f"{path}: is no safetensors file (a header of {length:,} bytes)")
    if 8 + length > size:
        raise AyaError(f"{path}: is truncated (within its header); fetch it again")
    header = _load_object(path, os.pread(file.descriptor, length, 8), "the header")
    header.pop("__metadata__", None)
    entries = {}
    ends = []
    for name, told in header.items():
        dtype, shape, start, end = _checked(path, name, told)
        entries[name] = Entry(path, dtype, shape, 8 + length + start)
        ends.append((start, end, name))
    place = 0
    for start, end, name in sorted(ends):
        if start != place:
            fault = "overlaps the one before it" if start < place else "leaves a gap before it"
            raise AyaError(f"{path}: the header is damaged (tensor '{name}' {fault})")
        place = end
    if 8 + length + place > size:
        raise AyaError(
            f"{path}: is truncated ({size:,} of {8 + length + place:,} bytes); fetch it again"
        )
    if 8 + length + place < size:
        raise AyaError(
            f"{path}: is damaged ({size:,} bytes, {8 + length + place:,} in its header); "
            "fetch it again"
        )
    return entries


def _checked(path: Path, name: str, told: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Return dtype, shape, start and end of a tensor as its header tells them."""
    damaged = f"{path}: the header is damaged (tensor '{name}' "
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"}:
        raise AyaError(f"{damaged}has not a dtype, a shape and data_offsets)")
    shape, offsets = told["shape"], told["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise AyaError(f"{damaged}has a shape or data_offsets that are no sizes)")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise AyaError(f"{damaged}has the data_offsets {offsets})")
    if told["dtype"] not in list(DTYPES):
        raise AyaError(
            f"{path}: tensor '{name}' has dtype {told['dtype']!r}; weights must be one of "
            f"{', '.join(sorted(DTYPES))}"
        )
    dtype = DTYPES[told["dtype"]]
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise AyaError(
            f"{damaged}of shape {tuple(shape)} in {told['dtype']} has {offsets[1] - offsets[0]:,} "
            "bytes)"
        )
    return dtype, tuple(shape), offsets[0], offsets[1]


@contextmanager
def write_safetensors(
    directory: Path,
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    *,
    max_shard_size: int = 5_000_000_000,
    single: str = SINGLE,
) -> Iterator[Put]:
    """Write a directory of safetensors; yield the function that takes each tensor, in any order.

    One file is made, or as many as are needed to have none above `max_shard_size`, but for a tensor
    that is larger itself, and an index. Their names are those that transformers gives.

    Args:
      directory: an existing folder.
      tensors: dtype and shape of each, by name, in the order of the files.
      max_shard_size: bytes of tensors in a file.
      single: the name of the file, where there is one.

    Raises:
      OSError: the disk is full, or the folder not writable.
    """
    layout = layout_of(tensors, max_shard_size=max_shard_size, single=single)
    make_files(directory, layout)
    left = set(tensors)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(open(directory / name, "r+b", buffering=0))
            for name in layout.headers
        }

        def put(name: str, array: np.ndarray) -> None:
            assert (array.dtype, array.shape) == tensors[name], name
            left.remove(name)
            file, start = layout.places[name]
            for block in _blocks(array):
                write_at(files[file], block, start)
                start += len(block)

        yield put
        assert not left, f"{next(iter(left))} was not written"
    write_index(directory, layout)


class Layout(NamedTuple):
    """The files of a directory before they have content.

    Attributes:
      headers: of each file, by its name: the bytes before the tensors.
      places: of each tensor its file, and where in it its bytes start.
      sizes: bytes of each file.
    """

    headers: dict[str, bytes]
    places: dict[str, tuple[str, int]]
    sizes: dict[str, int]


def layout_of(
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    *,
    max_shard_size: int = 5_000_000_000,
    single: str = SINGLE,
) -> Layout:
    """Return the files that hold tensors; arguments as in `write_safetensors`."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in tensors.items()}
    shards = _cut(sizes, max_shard_size)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    layout = Layout({}, {}, {})
    for file, shard in zip(names if len(shards) > 1 else [single], shards, strict=True):
        # Larger items first, as the safetensors library does, so that every one is aligned.
        ordered = sorted(shard, key=lambda name: -tensors[name][0].itemsize)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in ordered:
            start, end = end, end + sizes[name]
            dtype, shape = tensors[name]
            offsets = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
            header[name] = offsets
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        layout.headers[file] = struct.pack("<Q", len(text)) + text
        layout.sizes[file] = 8 + len(text) + end
        for name in ordered:
            layout.places[name] = (file, 8 + len(text) + header[name]["data_offsets"][0])
    return layout


def make_files(directory: Path, layout: Layout) -> None:
    """Make the files with their headers, zeros for tensors; what was there of their names is replaced.

    Raises:
      OSError: the disk is full, or the folder not writable.
    """
    for name, header in layout.headers.items():
        with open(directory / name, "wb", buffering=0) as file:
            file.write(header)
            os.truncate(file.fileno(), layout.sizes[name])


def write_index(directory: Path, layout: Layout) -> None:
    """Write the index of the files, where there are several.

    Raises:
      OSError: the disk is full, or the folder not writable.
    """
    if len(layout.headers) > 1:
        total = sum(layout.sizes[name] - len(header) for name, header in layout.headers.items())
        files = {name: file for name, (file, _) in sorted(layout.places.items())}
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _cut(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _blocks(array: np.ndarray) -> Iterator[memoryview]:
    """Yield the bytes of an array in C order, a block of rows at a time."""
    if not array.size:
        return
    rows = array.reshape(1) if array.ndim == 0 else array
    count = max(1, BLOCK // (rows.nbytes // len(rows)))
    for first in range(0, len(rows), count):
        block = in_c_order(rows[first : first + count])
        yield memoryview(block.reshape(-1).view(np.uint8))


def in_c_order(array: np.ndarray) -> np.ndarray:
    """Return the array with its elements in C order in memory, itself if they are."""
    if array.flags.c_contiguous:
        return array
    out = np.empty(array.shape, array.dtype)
    # What a strip of a transposed matrix reads stays in the cache: four times as fast as at once.
    for first in range(0, array.shape[-1], STRIP):
        out[..., first : first + STRIP] = array[..., first : first + STRIP]
    return out


def write_at(file: BinaryIO, block: memoryview, start: int) -> None:
    """Write bytes into a file from a place on."""
    done = 0
    while done < len(block):
        done += os.pwrite(file.fileno(), block[done:], start + done)
