"""Attention's kernels for TPUs: the list of steps, and what is never read."""

import importlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aya_kernels
from aya_kernels.attention.inputs import Inputs
from aya_kernels.attention.schedule import Layout, schedule
from aya_kernels.backends import target

# By its full name: in the package `attention` is the function.
mosaic_tpu = importlib.import_module("aya_kernels.attention.mosaic_tpu")


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 1, 1), (1, 1, 9), (1, 8, 1)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_steps_are_the_visible_blocks_row_by_row(
    shape: tuple[int, int, int], density: float
) -> None:
    rng = np.random.default_rng(0)
    some = rng.random(shape) < density
    every = some & (rng.random(shape) < 0.5)
    words, count = jax.jit(schedule)(some, every)
    steps = [Layout.of(shape).read(word) for word in words[: int(count)]]
    got = [tuple(int(field) for field in step) for step in steps]
    want = []
    for b, i in np.ndindex(*shape[:2]):
        columns = np.flatnonzero(some[b, i]).tolist() or [0]
        for j in columns:
            ends = int(j == columns[0]), int(j == columns[-1])
            want.append((b, i, j, *ends, int(some[b, i, j]), int(every[b, i, j])))
    assert got == want


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        # Documents of one block each: the first must not read the second.
        ({"causal": False, "packed": True}, slice(0, 128)),
        # A window of 100: the last block reads the one before, and that nothing of the first.
        ({"causal": True, "window": 100}, slice(384, 512)),
        ({"causal": False, "window": 100}, slice(384, 512)),
    ],
)
def test_hidden_blocks_are_never_read(options: dict[str, Any], seen: slice) -> None:
    options = dict(options)
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.normal(size=(1, 512, n, 8)).astype(np.float32) for n in (2, 1, 1, 2))
    if options.pop("packed", False):
        ids = np.repeat(np.array([[1, 2, 3, 4]], np.int32), 128, axis=1)
        options["segment_ids"] = ids, ids
    hidden = slice(128, 256) if seen.start == 0 else slice(0, 128)

    @jax.jit
    def both(q: Any, k: Any, v: Any, g: Any) -> Any:
        call = partial(aya_kernels.attention, backend="mosaic_tpu", **options)
        out, pull = jax.vjp(call, q, k, v)
        return out, *pull(g)

    clean = both(q, k, v, g)
    for x in (q, k, v, g):
        # What is multiplied by a probability of zero would still be NaN.
        x[:, hidden] = np.nan
    for got, want in zip(both(q, k, v, g), clean, strict=True):
        np.testing.assert_array_equal(got[:, seen], want[:, seen])


def test_a_group_may_take_several_steps() -> None:
    # No divisor of 11 is small enough: each head of the group has steps of its own.
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.normal(size=(1, 140, n, 8)).astype(np.float32) for n in (11, 1, 1, 11))
    results = []
    for backend in ("mosaic_tpu", "reference"):
        call = partial(aya_kernels.attention, window=50, backend=backend)
        out, pull = jax.vjp(jax.jit(call), q, k, v)
        results.append((out, *pull(g)))
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_long_sequences_get_longer_blocks() -> None:
    # The steps of 131,072 tokens have to lie in 1 MiB of scalar memory.
    def words(b: int, length: int, n: int) -> int:
        q, k = (jax.ShapeDtypeStruct((b, length, heads, 128), jnp.bfloat16) for heads in (n, 8))
        with target("tpu", "TPU v5 lite"):
            tiling = mosaic_tpu.Tiling.of(Inputs(q, k, k))  # type: ignore[arg-type]
        return b * -(-length // tiling.bq) * -(-length // tiling.bk)

    assert words(1, 8192, 64) == 64 * 16
    for b in (1, 4):
        assert words(b, 131072, 64) * 4 <= 1 << 19


def test_only_bfloat16_and_float32() -> None:
    x = jnp.zeros((1, 4, 1, 8), jnp.float16)
    with pytest.raises(ValueError, match="float16"):
        aya_kernels.attention(x, x, x, backend="mosaic_tpu")
