"""The entries of one tensor in every model, read ahead by threads while others are merged."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from aya_jax.merging.methods.kinds import Runs
from aya_jax.merging.rooms import Rooms
from aya_jax.merging.sources import Source
from aya_jax.models.names import HFTensor

# Bytes of models in memory at a time, or two parts: the one that is merged, and the next.
AHEAD = 256 << 20
# The leaves that have a row for every token.
VOCABULARY = frozenset({("embedding",), ("output",)})
# They wait for the disk, most of the time.
THREADS = 8

# Of one model: entries, and which of them it lacks, if any.
Found = tuple[np.ndarray, np.ndarray | None]
# A row of the merged vocabulary as a model numbers it, -1 where it has none; None: as they are.
Rows = np.ndarray | None


class Part(NamedTuple):
    """Entries of a tensor from `start` to before `stop`, in C order of our layout."""

    tensor: HFTensor
    start: int
    stop: int


class Read(NamedTuple):
    """What the models have there, [stop - start] each, and which entries of it each lacks, if any."""

    entries: list[np.ndarray]
    absent: list[np.ndarray | None]


class Reader:
    """Reads parts of several models. A context manager, which ends its threads."""

    def __init__(self, sources: Sequence[Source], rows: Sequence[Rows]) -> None:
        """Take models.

        Args:
          sources: the models.
          rows: of each, int [rows of the merged vocabulary]; see `Rows`.
        """
        self._sources, self._rows = sources, rows
        self._rooms = Rooms()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="read")

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def entry_bytes(self, tensor: HFTensor) -> int:
        """Return the bytes that one entry of a tensor takes, of all models."""
        return sum(source.leaves[tensor.leaf].dtype.itemsize for source in self._sources)

    def read(self, parts: Iterable[Part]) -> Iterator[Read]:
        """Yield what the models have of each part, in order; a few parts ahead are being read.

        Raises:
          AyaError: a file is damaged.
        """
        coming = iter(parts)
        waiting: deque[tuple[int, list[np.ndarray], list[Future[Found]]]] = deque()
        held, last = 0, next(coming, None)
        while waiting or last is not None:
            while last is not None:
                tensor, count = last.tensor, last.stop - last.start
                size = count * self.entry_bytes(tensor)
                if len(waiting) > 1 and held + size > AHEAD:
                    break
                rooms = [
                    self._rooms.take(count * source.leaves[tensor.leaf].dtype.itemsize)
                    for source in self._sources
                ]
                futures = [
                    self._threads.submit(self._read, source, rows, last, room)
                    for source, rows, room in zip(self._sources, self._rows, rooms, strict=True)
                ]
                waiting.append((size, rooms, futures))
                held += size
                last = next(coming, None)
            size, rooms, futures = waiting[0]
            results = [future.result() for future in futures]
            futures.clear()
            read = Read([entries for entries, _ in results], [absent for _, absent in results])
            del results
            yield read
            # Who asks for the next has done with this one, and may hold its name still.
            read.entries.clear()
            read.absent.clear()
            waiting.popleft()
            for room in rooms:
                self._rooms.give(room)
            held -= size

    def some(self, tensor: HFTensor, runs: Runs) -> Read:
        """Return what the models have of some runs of entries of a tensor, one after another.

        Raises:
          AyaError: as `read`.
        """

        def of_model(source: Source, rows: Rows) -> Found:
            found = [self._read(source, rows, Part(tensor, *run), None) for run in runs]
            lacking = [np.zeros(len(e), bool) if a is None else a for e, a in found]
            absent = np.concatenate(lacking) if any(a is not None for _, a in found) else None
            return np.concatenate([entries for entries, _ in found]), absent

        results = list(self._threads.map(of_model, self._sources, self._rows))
        return Read([entries for entries, _ in results], [absent for _, absent in results])

    @staticmethod
    def _read(source: Source, rows: Rows, part: Part, room: np.ndarray | None) -> Found:
        tensor, start, stop = part
        if rows is None or not of_vocabulary(tensor):
            return source.read(tensor, start, stop, room=room), None
        columns = tensor.part[1]
        first, last = start // columns, -(-stop // columns)
        own = rows[first:last]
        cut = slice(start - first * columns, stop - first * columns)
        entries = source.read_rows(tensor, own).reshape(-1)[cut]
        absent = np.repeat(own < 0, columns)[cut] if (own < 0).any() else None
        return entries, absent


def of_vocabulary(tensor: HFTensor) -> bool:
    """Whether a tensor has a row for every token: the embedding, or the output where it is not tied."""
    return tensor.leaf in VOCABULARY
