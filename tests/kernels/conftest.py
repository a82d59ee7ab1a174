"""Full float32 products in every kernel test, also on hardware whose default is coarser."""

import os

# Mosaic GPU's interpreter blocks one thread a warpgroup, for which a pool as large as two cores is too
# small; it is read when the CPU is first used.
os.environ.setdefault("NPROC", "8")

import threading
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from jax._src.pallas.mosaic.interpret import thread_map


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    """Mosaic GPU's interpreter compiles a kernel again for each warpgroup of each block; here, once."""
    programs: dict[int, Any] = {}
    lock = threading.Lock()

    def run(jaxpr: Any, consts: Any, *args: Any) -> None:
        def call(consts: Any, *args: Any) -> None:
            jax.core.eval_jaxpr(jaxpr, consts, *args)

        with lock:
            if id(jaxpr) not in programs:
                compiled = jax.jit(call).lower(consts, *args).compile()
                programs[id(jaxpr)] = jaxpr, compiled
        programs[id(jaxpr)][1](consts, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thread_map, "_run_jaxpr", run)
        yield
