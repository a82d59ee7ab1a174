"""Full float32 products in every kernel test, also on hardware whose default is coarser."""

import os

# Mosaic GPU's interpreter blocks one thread a warpgroup, for which a pool as large as two cores is too
# small; it is read when the CPU is first used.
os.environ.setdefault("NPROC", "8")

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield
