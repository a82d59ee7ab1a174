"""The batch at step n as a pure function of (data, seed, n), by grain; and batches made ahead."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import grain
import jax
import numpy as np

Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")


class Loader:
    """Shuffled, endless batches of the rows of `arrays`; `loader[n]` is the batch at step n.

    Nothing is remembered between calls, so the state of the loader is the step number alone, and any
    number of processes sees the same global batches. Each pass over the data has its own order; a
    batch may span the end of one pass and the next.
    """

    def __init__(self, arrays: Arrays, *, batch_size: int, seed: int) -> None:
        """Make the loader; nothing is read yet.

        Args:
          arrays: rows, equal first axes; they may lie on a disk (see `data.row_set`).
          batch_size: rows of a global batch, over all processes.
          seed: of the order of the rows.
        """
        count = len(next(iter(arrays.values())))
        self._arrays = arrays
        self._order = grain.MapDataset.range(count).seed(seed).shuffle().repeat()
        self._batch_size = batch_size

    def rows(self, step: int) -> np.ndarray:
        """Return int [batch_size]: the numbers of the rows in the batch at a step."""
        first = step * self._batch_size
        return np.array([self._order[i] for i in range(first, first + self._batch_size)])

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Return the whole batch at a step in this host's memory."""
        rows = self.rows(step)
        return {name: np.asarray(array[rows]) for name, array in self._arrays.items()}

    def on(self, step: int, sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
        """Return the global batch at a step on its devices.

        A process reads only what its own devices hold, and waits for no other process.

        Args:
          step: from 0.
          sharding: of arrays whose first axis is the batch.
        """
        rows = self.rows(step)

        def place(array: np.ndarray) -> jax.Array:
            # Devices that hold the same part share one reading of it.
            read: dict[str, np.ndarray] = {}

            def part(index: Any) -> np.ndarray:
                if str(index) not in read:
                    read[str(index)] = np.asarray(array[rows[index[0]]][:, *index[1:]])
                return read[str(index)]

            return jax.make_array_from_callback((len(rows), *array.shape[1:]), sharding, part)

        return {name: place(array) for name, array in self._arrays.items()}


@contextmanager
def prefetch(
    make: Callable[[int], T], start: int, stop: int, *, ahead: int = 2
) -> Iterator[Iterator[T]]:
    """Give the items `make(start)` to `make(stop - 1)`, in order, made in a thread beforehand.

    What `make` raises is raised where its own item is asked for. When the block ends, however it
    ends, nothing is made any more.

    Args:
      make: a function of an item's number.
      start, stop: the numbers of the items, [start, stop).
      ahead: so many items may wait to be asked for, at least 1.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        numbers = iter(range(start, stop))
        waiting: deque[Future[T]] = deque()

        def begin(count: int) -> None:
            waiting.extend(thread.submit(make, number) for number in islice(numbers, count))

        def items() -> Iterator[T]:
            while waiting:
                item = waiting.popleft().result()
                begin(1)
                yield item

        begin(ahead)
        try:
            yield items()
        finally:
            thread.shutdown(cancel_futures=True)
