"""Where a merge is written, piece by piece: a model directory of ours, or a Hugging Face directory."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tensorstore as ts

from aya_jax.checkpoints.hugging_face import read_entries
from aya_jax.checkpoints.safetensors import (
    Safetensors,
    in_c_order,
    layout_of,
    make_files,
    write_at,
    write_index,
)
from aya_jax.checkpoints.slices import Leaf, LeafPath, chunk_file, make_frame, open_frame
from aya_jax.checkpoints.store import CHUNK, RESERVE, empty_place, write_listing
from aya_jax.data.files import fingerprint_file, require_space, sync_directory, told_plainly
from aya_jax.models.architecture import ModelConfig
from aya_jax.models.names import HFTensor

# A tensor that we keep turned is written at once up to this size; a larger one in parts, and read again for its checksum.
WHOLE = 256 << 20
# Bytes that are read again at a time, which the processor's caches hold.
BUFFER = 1 << 20
NAME = "params"


class Output(ABC):
    """The parameters of a model on the disk, while they are written by one process or several.

    Attributes:
      directory: the folder.
      leaves: dtype, shape and number of stacked axes of every leaf in our layout, by its path.
    """

    def __init__(
        self, directory: Path, leaves: Mapping[LeafPath, Leaf], tensors: Sequence[HFTensor]
    ) -> None:
        self.directory, self.leaves = directory, dict(leaves)

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves."""
        return sum(leaf.nbytes for leaf in self.leaves.values())

    def config(self, config: ModelConfig, *, reward: bool) -> dict[str, Any]:
        """Return the `config.json` of the model."""
        return config.to_hf(reward=reward)

    def make(self) -> None:
        """Make the files without content, for the lead alone; what was there of another merge is removed.

        Raises:
          AyaError: the disk has no room for them, or the place is not writable.
        """
        with told_plainly(self.directory):
            empty_place(self.directory, [NAME])
            for path in self.directory.glob("model*.safetensors*"):
                path.unlink()
            self._make()

    @abstractmethod
    def _make(self) -> None: ...

    @abstractmethod
    def open(self) -> None:
        """Open the files that were made."""

    @abstractmethod
    def close(self) -> None:
        """Close the files."""

    def is_turned(self, tensor: HFTensor) -> bool:
        """Whether the rows of a tensor are columns in the file."""
        return False

    @abstractmethod
    def grain(self, tensor: HFTensor) -> int:
        """Return how many entries of a tensor a piece must have, or a multiple; its last may have fewer."""

    @abstractmethod
    def write(self, tensor: HFTensor, start: int, piece: np.ndarray) -> None:
        """Write entries of a tensor from `start` on, [entries] in C order of `tensor.part`.

        That is our layout, or the one of `HFTensor.as_filed` where `is_turned`.
        """

    @abstractmethod
    def read(self, tensor: HFTensor, start: int, stop: int) -> np.ndarray:
        """Return entries that were written; `finish` comes before."""

    @abstractmethod
    def seal(self, tensors: Sequence[HFTensor]) -> dict[str, dict[str, str]]:
        """Wait until tensors are on the disk; return the checksums of what each is in, by its name."""

    @abstractmethod
    def sums(self, tensor: HFTensor) -> dict[str, str]:
        """Return the checksums of what a tensor is in now; of files that are not there, none."""

    @abstractmethod
    def finish(self, sums: Mapping[str, Mapping[str, str]]) -> None:
        """Write what says that the parameters are whole, for the lead alone; `sums` are of all tensors."""


class Ours(Output):
    """The tree `params` of a model directory; every chunk of a leaf is a file: its rows as they are in memory.

    TensorStore, which makes and reads such files, would copy what it writes, and that takes as long as to merge it.
    """

    def __init__(
        self, directory: Path, leaves: Mapping[LeafPath, Leaf], tensors: Sequence[HFTensor]
    ) -> None:
        super().__init__(directory, leaves, tensors)
        # Of tensors that are being written: the checksums of their files.
        self._summed: dict[str, dict[str, str]] = {}

    def _make(self) -> None:
        make_frame(self.directory, NAME, self.leaves)

    def open(self) -> None:
        self._stores: dict[LeafPath, ts.TensorStore] = open_frame(self.directory, NAME, self.leaves)

    def close(self) -> None:
        self._stores = {}

    def grain(self, tensor: HFTensor) -> int:
        return prod(self.leaves[tensor.leaf].chunks)

    def _file(self, tensor: HFTensor, chunk: int) -> str:
        return chunk_file(tensor.leaf, tensor.index, chunk, len(tensor.part[1:]))

    def write(self, tensor: HFTensor, start: int, piece: np.ndarray) -> None:
        grain = self.grain(tensor)
        for first in range(0, piece.size, grain):
            chunk = piece[first : first + grain].view(np.uint8)
            # The last one has as many bytes as the others, whatever its rows.
            rest = bytes(grain * piece.itemsize - chunk.size)
            checksum = hashlib.sha256(chunk)
            checksum.update(rest)
            name = self._file(tensor, (start + first) // grain)
            with open(self.directory / NAME / name, "wb", buffering=0) as file:
                write_at(file, memoryview(chunk), 0)
                write_at(file, memoryview(rest), chunk.size)
                os.fsync(file.fileno())
            self._summed.setdefault(tensor.name, {})[name] = checksum.hexdigest()

    def read(self, tensor: HFTensor, start: int, stop: int) -> np.ndarray:
        row = prod(tensor.part[1:])
        part: Any = (*tensor.index, slice(start // row, stop // row))
        return np.asarray(self._stores[tensor.leaf][part].read().result()).reshape(-1)

    def seal(self, tensors: Sequence[HFTensor]) -> dict[str, dict[str, str]]:
        for folder in {(self.directory / NAME / self._file(each, 0)).parent for each in tensors}:
            sync_directory(folder)
        return {tensor.name: self._summed.pop(tensor.name) for tensor in tensors}

    def sums(self, tensor: HFTensor) -> dict[str, str]:
        count = -(-prod(tensor.part) // self.grain(tensor))
        files = [self._file(tensor, chunk) for chunk in range(count)]
        places = {file: self.directory / NAME / file for file in files}
        return {f: fingerprint_file(place) for f, place in places.items() if place.is_file()}

    def finish(self, sums: Mapping[str, Mapping[str, str]]) -> None:
        place = self.directory / NAME
        whole = {file: checksum for each in sums.values() for file, checksum in each.items()}
        for path in place.rglob("*"):
            file = path.relative_to(place).as_posix()
            if path.is_file() and file not in whole:
                whole[file] = fingerprint_file(path)
        write_listing(self.directory, NAME, whole)


class HuggingFace(Output):
    """The safetensors files of a Hugging Face directory, and their index."""

    def __init__(
        self,
        directory: Path,
        leaves: Mapping[LeafPath, Leaf],
        tensors: Sequence[HFTensor],
    ) -> None:
        super().__init__(directory, leaves, tensors)
        self._written: Safetensors | None = None
        # Of tensors that are being written: how many of their bytes are in the checksum.
        self._summed: dict[str, tuple[int, Any]] = {}
        self._turned = {tensor.name for tensor in tensors if tensor.transpose}
        self._layout = layout_of({t.name: (leaves[t.leaf].dtype, t.shape) for t in tensors})

    def config(self, config: ModelConfig, *, reward: bool) -> dict[str, Any]:
        told = super().config(config, reward=reward)
        # transformers loads a model in the dtype that its config tells.
        dtype = self.leaves[("embedding",)].dtype.name
        return {**told, "dtype" if "dtype" in told else "torch_dtype": dtype}

    def _make(self) -> None:
        require_space(self.directory, self.nbytes + RESERVE)
        make_files(self.directory, self._layout)

    def open(self) -> None:
        self._files: dict[str, BinaryIO] = {
            name: open(self.directory / name, "r+b", buffering=0) for name in self._layout.headers
        }

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._written is not None:
            self._written.close()

    def is_turned(self, tensor: HFTensor) -> bool:
        return tensor.name in self._turned

    def grain(self, tensor: HFTensor) -> int:
        itemsize, size = self.leaves[tensor.leaf].dtype.itemsize, prod(tensor.shape)
        # Whole, a tensor can be turned for its checksum.
        if self.is_turned(tensor) and size * itemsize <= WHOLE:
            return size
        if tensor.transpose:
            return max(1, CHUNK // (itemsize * tensor.shape[0])) * tensor.shape[0]
        return max(1, min(size, CHUNK // itemsize))

    def write(self, tensor: HFTensor, start: int, piece: np.ndarray) -> None:
        name, place = self._layout.places[tensor.name]
        file, itemsize = self._files[name], piece.itemsize
        plain = piece.view(f"u{itemsize}")
        if not tensor.transpose:
            self._write_next(tensor, start * itemsize, memoryview(plain).cast("B"))
            return
        outputs, inputs = tensor.shape
        columns = in_c_order(plain.reshape(-1, outputs).T)
        first = start // outputs
        if columns.shape == tensor.shape:
            self._write_next(tensor, 0, memoryview(columns).cast("B"))
            return
        for row, run in enumerate(columns):
            write_at(file, memoryview(run).cast("B"), place + (row * inputs + first) * itemsize)

    def _write_next(self, tensor: HFTensor, start: int, block: memoryview) -> None:
        """Write bytes of a tensor from one of its bytes on, and add them to its checksum if they are the next ones."""
        name, place = self._layout.places[tensor.name]
        write_at(self._files[name], block, place + start)
        done, checksum = self._summed.setdefault(tensor.name, (0, hashlib.sha256()))
        if start == done:
            checksum.update(block)
            self._summed[tensor.name] = start + len(block), checksum

    def read(self, tensor: HFTensor, start: int, stop: int) -> np.ndarray:
        if self._written is None:
            self._written = Safetensors(self.directory)
        return read_entries(self._written, tensor, start, stop)

    def seal(self, tensors: Sequence[HFTensor]) -> dict[str, dict[str, str]]:
        for name in {self._layout.places[tensor.name][0] for tensor in tensors}:
            os.fsync(self._files[name].fileno())
        found = {}
        for tensor in tensors:
            done, checksum = self._summed.pop(tensor.name, (0, None))
            if checksum is not None and done == self._size(tensor):
                found[tensor.name] = {tensor.name: checksum.hexdigest()}
            else:
                found[tensor.name] = self.sums(tensor)
        return found

    def _size(self, tensor: HFTensor) -> int:
        return prod(tensor.shape) * self.leaves[tensor.leaf].dtype.itemsize

    def sums(self, tensor: HFTensor) -> dict[str, str]:
        name, place = self._layout.places[tensor.name]
        size = self._size(tensor)
        checksum = hashlib.sha256()
        buffer = memoryview(bytearray(min(size, BUFFER)))
        while size:
            got = os.preadv(self._files[name].fileno(), [buffer[: min(size, BUFFER)]], place)
            if not got:
                break
            checksum.update(buffer[:got])
            size, place = size - got, place + got
        return {tensor.name: checksum.hexdigest()}

    def finish(self, sums: Mapping[str, Mapping[str, str]]) -> None:
        with told_plainly(self.directory):
            write_index(self.directory, self._layout)


# What a merge can be written as.
FORMS: dict[str, type[Output]] = {"aya": Ours, "hugging_face": HuggingFace}
