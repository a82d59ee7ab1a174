"""The sizes of models' differences from a base at given ranks, exactly, in one pass and without sorting them.

A sample tells between which two numbers the one of a rank must be; a pass counts what is above these and keeps the
few between them. Magnitudes are compared as the bits of float32, which have their order.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import NamedTuple

import numpy as np

from aya_jax.merging.methods.kinds import Block, Entries

# Runs of entries that make up a sample, and the entries of each. A rank is bracketed by so many standard deviations.
RUNS, RUN, SURE = 256, 512, 5.0
# Entries that are compared at once: the processor's caches hold them.
PIECE = 1 << 18
LOWEST, HIGHEST = 0, 0xFFFFFFFF


def magnitudes(size: int, ranks: Sequence[Sequence[int]], entries: Entries) -> list[list[int]]:
    """Return of each model's difference the magnitudes at some ranks, as the bits of float32.

    Args:
      size: entries of the tensor.
      ranks: of each model, 1 for the largest to `size` for the smallest; there may be several.
      entries: of the tensor, with a base.
    """
    wanted = sorted({(model, rank) for model, each in enumerate(ranks) for rank in each})
    models = {model for model, _ in wanted}
    if not wanted:
        return [[] for _ in ranks]
    sample = entries.some(_runs(size))
    sampled = {model: bits.copy() for model, bits in _bits(sample, models)}
    searches = [_Search(model, rank, size, sampled[model]) for model, rank in wanted]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while left := [search for search in searches if search.found is None]:

            def look(piece: Block, left: list["_Search"] = left) -> list[Seen]:
                return [
                    search.look(bits)
                    for model, bits in _bits(piece, {search.model for search in left})
                    for search in left
                    if search.model == model
                ]

            order = sorted(left, key=lambda search: search.model)
            for block in entries.whole():
                for seen in threads.map(look, block.cut(PIECE)):
                    for search, what in zip(order, seen, strict=True):
                        search.take(what)
            for search in left:
                search.settle()
    found = {(search.model, search.rank): search.found for search in searches}
    return [[found[model, rank] for rank in each] for model, each in enumerate(ranks)]  # type: ignore[misc]


def _runs(size: int) -> list[tuple[int, int]]:
    """Return the runs of entries that are a sample of so many, from the first to before the second."""
    if size <= RUNS * RUN:
        return [(0, size)]
    # One at a random place in each of as many equal stretches, so that no column of a matrix is preferred.
    shifts = np.random.default_rng(size).random(RUNS)
    starts = (np.arange(RUNS) * (size / RUNS) + shifts * (size / RUNS - RUN)).astype(np.int64)
    return [(start, start + RUN) for start in starts.tolist()]


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
    for model in sorted(models):
        np.copyto(delta, piece.leaves[model], casting="unsafe")
        np.subtract(delta, base, out=delta)
        np.abs(delta, out=delta)
        yield model, delta.view(np.uint32)


class Seen(NamedTuple):
    """What a search sees in a piece: how many entries are above, at both ends, and all that are strictly between."""

    above: int
    at_high: int
    at_low: int
    between: np.ndarray


class _Search:
    """The search for the magnitude of one rank, from pass to pass.

    Attributes:
      found: its bits, None until they are known.
    """

    def __init__(self, model: int, rank: int, size: int, sample: np.ndarray) -> None:
        self.model, self.rank = model, rank
        self.found: int | None = None
        self._sample = np.sort(sample)[::-1]
        if len(self._sample) == size:
            self.found = int(self._sample[rank - 1])
        self._seen: list[Seen] = []
        # What the bits are between, both included.
        self._low, self._high = LOWEST, HIGHEST
        self._share = rank / size
        self._margin = self._deviation(sample)
        self._aim()

    def _deviation(self, sample: np.ndarray) -> float:
        """Return the standard deviation of the share of the sample that is above the magnitude.

        What is near to each other is alike: each run counts as one draw of its share.
        """
        count = len(self._sample)
        guess = self._sample[min(count - 1, int(self._share * count))]
        runs = sample[: count // RUN * RUN or None].reshape(-1, min(RUN, count))
        shares = np.count_nonzero(runs >= guess, axis=1) / runs.shape[1]
        return max(float(shares.std()), 1 / RUN) / math.sqrt(len(runs))

    def _aim(self) -> None:
        """Set what to look between: narrower than what is known for sure already."""
        count = len(self._sample)
        low = math.ceil(count * (self._share + SURE * self._margin))
        high = math.floor(count * (self._share - SURE * self._margin)) - 1
        if low < count:
            self._low = max(self._low, int(self._sample[low]))
        if high >= 0:
            self._high = min(self._high, int(self._sample[high]))

    def look(self, bits: np.ndarray) -> Seen:
        """Return what there is to see in a piece; changes nothing."""
        low, high = np.uint32(self._low), np.uint32(self._high)
        above = int(np.count_nonzero(bits > high))
        from_low = int(np.count_nonzero(bits >= low))
        inside, from_high = bits > low, bits >= high
        at_high = int(np.count_nonzero(from_high)) - above
        at_low = from_low - int(np.count_nonzero(inside)) if low < high else 0
        # The ends, which many entries may have in common, would fill the memory.
        np.greater(inside, from_high, out=inside)
        return Seen(above, at_high, at_low, np.compress(inside, bits))

    def take(self, seen: Seen) -> None:
        """Keep what was seen in a piece."""
        self._seen.append(seen)

    def settle(self) -> None:
        """Draw the conclusions of a pass."""
        seen, self._seen = self._seen, []
        between = np.concatenate([each.between for each in seen])
        place = self.rank - sum(each.above for each in seen)
        inside = place - sum(each.at_high for each in seen)
        after = inside - len(between)
        if place < 1:
            # The sample misled.
            self._low, self._high = self._high + 1, HIGHEST
        elif inside < 1:
            self.found = self._high
        elif after < 1:
            self.found = int(np.partition(between, -inside)[-inside])
        elif after <= sum(each.at_low for each in seen):
            self.found = self._low
        else:
            self._low, self._high = LOWEST, self._low - 1
        self._margin = 4 * self._margin + 1 / len(self._sample)
        self._aim()
