"""Full float32 products in every kernel test, also on hardware whose default is coarser."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield
