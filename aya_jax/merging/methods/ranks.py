"""The largest entries of models' differences from a base, exactly, in few passes and without sorting them.

A sample tells between which two numbers the one of a rank must be; a pass counts what is above these and keeps the
few entries between them. Magnitudes are compared as the bits of float32, which have their order.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import NamedTuple

import numpy as np

from aya_jax.merging.methods.kinds import Block, Blocks

# Entries of a sample, about; and by how many of its standard deviations a rank is bracketed.
SAMPLE, SURE = 1 << 17, 6.0
# Entries that are compared at once: the processor's caches hold them.
PIECE = 1 << 17
HIGHEST = 0xFFFFFFFF


class Top(NamedTuple):
    """The entries of the highest ranks: those whose magnitude has more bits than `bits`, and of equal ones the first.

    Attributes:
      bits: of float32.
      last: the place of the last equal one that belongs to them.
    """

    bits: int
    last: int


NONE, ALL = Top(HIGHEST, 0), Top(0, HIGHEST)


def tops(size: int, ranks: Sequence[Sequence[int]], blocks: Blocks) -> list[list[Top]]:
    """Return the entries of the first so many ranks of each model's difference; equal ones rank by their place.

    Args:
      size: entries of the tensor.
      ranks: of each model, how many entries, from 0 to `size`; there may be several such numbers.
      blocks: of the tensor, with a base.
    """
    known = {0: NONE, size: ALL}
    wanted = sorted(
        {(i, rank) for i, each in enumerate(ranks) for rank in each if rank not in known}
    )
    sampled: dict[int, list[np.ndarray]] = {i: [] for i, _ in wanted}
    for block in blocks() if wanted else ():
        part = _sample(block, size)
        for i, bits in _bits(part, sampled):
            sampled[i].append(bits.copy())
    samples = {i: np.sort(np.concatenate(parts))[::-1] for i, parts in sampled.items()}
    searches = [_Search(i, rank, *_bracket(rank, size, samples[i])) for i, rank in wanted]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while left := [search for search in searches if search.top is None]:

            def look(piece: Block, left: list["_Search"] = left) -> list[tuple["_Search", "_Seen"]]:
                asking = [search for search in left if search.asks(piece.start)]
                return [
                    (search, search.look(bits, piece.start))
                    for i, bits in _bits(piece, {search.model for search in asking})
                    for search in asking
                    if search.model == i
                ]

            for block in blocks():
                for seen in threads.map(look, block.cut(PIECE)):
                    for search, what in seen:
                        search.take(what)
            for search in left:
                search.settle()
    found = {(search.model, search.rank): search.top for search in searches}
    return [[known.get(rank) or found[i, rank] for rank in each] for i, each in enumerate(ranks)]  # type: ignore[misc]


def _sample(block: Block, size: int) -> Block:
    """Return the entries of a block that belong to the sample."""
    # Odd, so that no column of a matrix is preferred.
    step = (size // SAMPLE) | 1
    part = slice(-block.start % step, None, step)
    assert block.base is not None
    return Block(tuple(leaf[part] for leaf in block.leaves), block.base[part])


_scratch = local()


def _bits(piece: Block, models: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield of each model the bits of the magnitudes of its difference, uint32 [n], which the next one overwrites.

    Memory that is new to a process is slow to write: each thread uses its own again.
    """
    assert piece.base is not None
    count = len(piece.base)
    if getattr(_scratch, "size", -1) < count:
        _scratch.size, _scratch.arrays = count, np.empty((2, count), np.float32)
    base, delta = (array[:count] for array in _scratch.arrays)
    np.copyto(base, piece.base, casting="unsafe")
    for i in sorted(models):
        np.copyto(delta, piece.leaves[i], casting="unsafe")
        np.subtract(delta, base, out=delta)
        np.abs(delta, out=delta)
        yield i, delta.view(np.uint32)


def _bracket(rank: int, size: int, sample: np.ndarray) -> tuple[int, int]:
    """Return bits that the entry of a rank lies between, almost surely, both included."""
    count = len(sample)
    place = rank / size * count
    margin = SURE * math.sqrt(count * (rank / size) * (1 - rank / size)) + 2
    low, high = math.ceil(place + margin), math.floor(place - margin)
    return (
        int(sample[low]) if low < count else 0,
        int(sample[high]) if high >= 0 else HIGHEST,
    )


class _Seen(NamedTuple):
    """What a search sees in a piece: its place, how many entries are above, and the bits between, each with its number.

    Once the bits are known, `last` is the place of the last entry.
    """

    start: int
    above: int = 0
    values: np.ndarray = np.zeros(0, np.uint32)
    counts: np.ndarray = np.zeros(0, np.int64)
    last: int | None = None


class _Search:
    """The search for the last entry of a rank, from pass to pass."""

    def __init__(self, model: int, rank: int, low: int, high: int) -> None:
        self.model, self.rank = model, rank
        # What the bits of the entry lie between, both included.
        self._low, self._high = low, high
        self._seen: list[_Seen] = []
        # Once the bits are known: the piece that has the entry, and which of its equal ones it is.
        self._piece: tuple[int, int] | None = None
        self.top: Top | None = None

    def asks(self, start: int) -> bool:
        """Whether the piece that begins at `start` is of interest."""
        return self._piece is None or self._piece[0] == start

    def look(self, bits: np.ndarray, start: int) -> _Seen:
        """Return what there is in a piece that begins at `start`; changes nothing."""
        if self._piece is not None:
            equal = np.flatnonzero(bits == np.uint32(self._low))
            return _Seen(start, last=start + int(equal[self._piece[1] - 1]))
        above = int(np.count_nonzero(bits > np.uint32(self._high)))
        between = bits[(bits >= np.uint32(self._low)) & (bits <= np.uint32(self._high))]
        return _Seen(start, above, *np.unique(between, return_counts=True))

    def take(self, seen: _Seen) -> None:
        """Keep what was seen in a piece."""
        if seen.last is not None:
            self.top = Top(self._low, seen.last)
        self._seen.append(seen)

    def settle(self) -> None:
        """Draw the conclusions of a pass."""
        if self.top is not None:
            return
        seen, self._seen = self._seen, []
        above = sum(each.above for each in seen)
        values, where = np.unique(np.concatenate([e.values for e in seen]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, where, np.concatenate([each.counts for each in seen]))
        upto = above + np.cumsum(counts[::-1])
        place = int(np.searchsorted(upto, self.rank))
        if above >= self.rank or place == len(values):
            # The sample misled.
            higher = above >= self.rank
            self._low, self._high = (self._high + 1, HIGHEST) if higher else (0, self._low - 1)
            return
        self._low = int(values[::-1][place])
        equal = self.rank - int(upto[place] - counts[::-1][place])
        for each in seen:
            here = int(each.counts[each.values == self._low].sum())
            if here >= equal:
                self._piece = each.start, equal
                return
            equal -= here
