"""The rows of a training, made once and kept beside its checkpoints."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aya_jax.data.files import fingerprint
from aya_jax.data.row_set import is_whole, open_rows, write_rows
from aya_jax.sharding.processes import is_lead, together

# The folder of a training's work that has them.
ROWS = "rows"


def kept_rows(
    directory: Path, key: Any, make: Callable[[], Iterable[Mapping[str, np.ndarray]]]
) -> dict[str, np.ndarray]:
    """Return the rows of a training, which lie on the disk until they are asked for.

    The lead makes them, unless a killed attempt at the same training has left them whole.

    Args:
      directory: where the training works; seen by all processes.
      key: JSON-able; all that the rows follow from.
      make: returns the rows in parts, see `data.row_set.write_rows`.

    Raises:
      AyaError: what `make` raises, in all processes; or the disk is full or cannot be written.
    """
    name, folder = fingerprint(key), directory / ROWS

    def make_once() -> None:
        if is_lead() and not is_whole(folder, name):
            write_rows(folder, name, make())

    together("rows", make_once)
    return open_rows(folder)
