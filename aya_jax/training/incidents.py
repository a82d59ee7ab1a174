"""What is left of a training's bad or stuck steps for a user to look at."""

import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aya_jax.data.files import atomic_write
from aya_jax.sharding.processes import is_lead

# Tells the rows of a batch in words: their numbers in the data and their arrays; one JSON-able value each.
Describe = Callable[[np.ndarray, Mapping[str, np.ndarray]], Iterable[Any]]


class Incidents:
    """The folder of a training's incidents; it is made when there is one.

    Args:
      directory: the folder.
      describe: tells a batch in words, if anything can.
    """

    def __init__(self, directory: Path, *, describe: Describe = lambda numbers, batch: ()) -> None:
        self._directory = directory
        self._describe = describe

    @property
    def stacks(self) -> Path:
        """Where the stacks of this process go if it is stuck."""
        return self._directory / f"stuck.process_{jax.process_index()}.txt"

    def keep_batch(self, step: int, numbers: np.ndarray, batch: Mapping[str, np.ndarray]) -> Path:
        """Write the batch of a bad step; return where.

        `step_N.npz` has its arrays, and in `rows` the numbers of its rows in the training data;
        `step_N.jsonl` has a line for each text in it.

        Args:
          step: its number, from 1.
          numbers: int [B], of its rows.
          batch: arrays [B, ...].

        Raises:
          AyaError: the disk is full, or the folder not writable.
        """
        place = self._directory / f"step_{step:08d}.npz"
        if is_lead():
            self._directory.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            arrays: dict[str, Any] = {"rows": numbers, **batch}
            np.savez_compressed(content, **arrays)
            atomic_write(place, content.getvalue())
            lines = (json.dumps(row, ensure_ascii=False) for row in self._describe(numbers, batch))
            atomic_write(place.with_suffix(".jsonl"), "".join(f"{line}\n" for line in lines))
        return place
