"""The thread that writes what is merged, while the next is read and computed."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from types import TracebackType
from typing import Any

import numpy as np

from aya_jax.checkpoints.safetensors import in_c_order
from aya_jax.checkpoints.slices import Leaf, LeafPath
from aya_jax.checkpoints.store import leaf_checksum
from aya_jax.merging.journal import Journal
from aya_jax.merging.outputs import Output
from aya_jax.merging.rooms import Rooms
from aya_jax.models.names import HFTensor

# Tensors are waited for and noted when so many bytes of them are written: a kill loses no more.
SEALED = 256 << 20
# Pieces on their way to the disk while the next one is filled.
UNDERWAY = 2
# Columns that are turned into rows at once.
COLUMNS = 256


class Writer:
    """Takes tensors one after another, each in entries that follow each other. A context manager.

    When it ends without an error all that it took is on the disk, and noted in the journal.

    Attributes:
      checksums: see `LeafChecksums`.
    """

    def __init__(self, output: Output, journal: Journal, checksums: "LeafChecksums") -> None:
        self._output, self._journal, self.checksums = output, journal, checksums
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._summing = ThreadPoolExecutor(1, thread_name_prefix="sum")
        self._underway: list[Future[None]] = []
        self._unsealed: list[HFTensor] = []
        self._tensor: HFTensor | None = None
        self._rooms = Rooms()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._do(self._seal)
                self._wait(0)
        finally:
            self._thread.shutdown(cancel_futures=True)
            self._summing.shutdown()

    @property
    def dtype(self) -> np.dtype:
        """Of the tensor that comes now."""
        assert self._tensor is not None
        return self._output.leaves[self._tensor.leaf].dtype

    def begin(self, tensor: HFTensor) -> None:
        """Say which tensor comes now."""
        self._tensor, self._done = tensor, 0
        self._left, self._filled = prod(tensor.part), 0
        self._next_piece()

    def _next_piece(self) -> None:
        assert self._tensor is not None
        count = min(self._left, self._output.grain(self._tensor))
        self._room = self._rooms.take(count * self.dtype.itemsize)
        self._piece = self._room[: count * self.dtype.itemsize].view(self.dtype)

    def add(self, entries: np.ndarray) -> None:
        """Take the next entries of the tensor, [number] in the dtype of its leaf.

        Raises:
          Exception: writing failed; what was added before may be what could not be written.
        """
        assert self._tensor is not None
        while len(entries):
            count = min(len(entries), len(self._piece) - self._filled)
            self._piece[self._filled : self._filled + count] = entries[:count]
            self._filled += count
            entries = entries[count:]
            if self._filled == len(self._piece):
                self._left -= self._filled
                last = self._left == 0
                self._do(self._write, self._tensor, self._done, self._piece, self._room, last)
                self._done += self._filled
                self._filled = 0
                if not last:
                    self._next_piece()

    def _do(self, work: Any, *arguments: Any) -> None:
        self._wait(UNDERWAY - 1)
        self._underway.append(self._thread.submit(work, *arguments))

    def _wait(self, left: int) -> None:
        while len(self._underway) > left:
            self._underway.pop(0).result()

    def _write(
        self, tensor: HFTensor, start: int, piece: np.ndarray, room: np.ndarray, last: bool
    ) -> None:
        summed = self._summing.submit(self.checksums.add, tensor, start, piece)
        self._output.write(tensor, start, piece)
        summed.result()
        self._rooms.give(room)
        if last:
            self._unsealed.append(tensor)
            leaves = self._output.leaves
            held = sum(prod(t.part) * leaves[t.leaf].dtype.itemsize for t in self._unsealed)
            if held >= SEALED:
                self._seal()

    def _seal(self) -> None:
        self._journal.add(self._output.seal(self._unsealed))
        self._unsealed = []


def _turned(matrix: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the columns of a matrix as rows, some at a time: memory for all of them would be slow to fill."""
    for first in range(0, matrix.shape[1], COLUMNS):
        yield in_c_order(matrix[:, first : first + COLUMNS].T)


class LeafChecksums:
    """The checksums of leaves as `store.leaf_checksums` has them, of entries that come in any order.

    A leaf whose entries do not come in the order of its bytes is left to who reads it again.
    """

    def __init__(self, leaves: Mapping[LeafPath, Leaf], tensors: Sequence[HFTensor]) -> None:
        self._sums = {path: leaf_checksum(leaf.dtype, leaf.shape) for path, leaf in leaves.items()}
        self._next: dict[LeafPath, list[tuple[str, int]]] = {path: [] for path in leaves}
        for tensor in sorted(tensors, key=lambda tensor: tensor.index, reverse=True):
            self._next[tensor.leaf].append((tensor.name, 0))
        self._tensors = {tensor.name: tensor for tensor in tensors}

    def add(self, tensor: HFTensor, start: int, entries: np.ndarray) -> None:
        """Take entries of a tensor, [number] from `start` on in C order of `tensor.part`."""
        coming, own = self._next[tensor.leaf], self._tensors[tensor.name]
        blocks = iter([entries])
        if tensor.transpose != own.transpose:
            if len(entries) < prod(own.part):
                return
            blocks = _turned(entries.view(f"u{entries.itemsize}").reshape(own.shape))
        if coming and coming[-1] == (tensor.name, start):
            for block in blocks:
                self._sums[tensor.leaf].update(block.reshape(-1).view(np.uint8))
            end = start + len(entries)
            coming.pop()
            if end < prod(own.part):
                coming.append((tensor.name, end))

    def known(self) -> dict[str, str]:
        """Return the checksums of the leaves that are complete, by their names."""
        return {
            "/".join(path): self._sums[path].hexdigest()
            for path, coming in self._next.items()
            if not coming
        }
