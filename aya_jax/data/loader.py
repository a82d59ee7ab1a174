"""The batch at step n as a pure function of (data, seed, n), by grain."""

from collections.abc import Mapping

import grain
import jax
import numpy as np

Arrays = Mapping[str, np.ndarray]


class Loader:
    """Shuffled, endless batches of the rows of `arrays`; `loader[n]` is the batch at step n.

    Nothing is remembered between calls, so the state of the loader is the step number alone. Each
    pass over the data has its own order; a batch may span the end of one pass and the next. With
    several processes, each one is given its own share of every global batch.
    """

    def __init__(self, arrays: Arrays, *, batch_size: int, seed: int) -> None:
        count = len(next(iter(arrays.values())))
        self._arrays = arrays
        self._rows = grain.MapDataset.range(count).seed(seed).shuffle().repeat()
        self._batch_size = batch_size

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        first = step * self._batch_size
        share = self._batch_size // jax.process_count()
        start = first + share * jax.process_index()
        rows = np.array([self._rows[i] for i in range(start, start + share)])
        return {name: array[rows] for name, array in self._arrays.items()}
