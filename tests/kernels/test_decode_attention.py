"""Every backend of decode_attention against the definition in NumPy float64."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

import aya_kernels
from aya_kernels.attention.combine import combine, combine_all

BACKENDS = ["reference", "xla", "mosaic_tpu", "triton"]
SIZE = 4
# Queries, query heads, key heads, head size; 20 slots are whole pages, 23 are not.
SHAPES = {"one query": (1, 4, 2, 16), "three queries, odd sizes": (3, 6, 1, 12)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all options": {"window": 9, "softcap": 2.0, "scale": 1.5},
}
# Nothing, one slot, fewer than there are queries, some pages, all.
LENGTHS = np.array([0, 1, 2, 7, 12, 23], np.int32)


def definition(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    lengths: np.ndarray,
    *,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return out [B, T, N, H] and lse [B, N, T] in float64 by loops over rows, queries and heads."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    b, t, n, h = q.shape
    out, lse = np.zeros_like(q), np.full((b, n, t), -1e30)
    for b, t, n in np.ndindex(q.shape[:3]):
        end = lengths[b] - (q.shape[1] - 1 - t)
        seen = slice(0 if window is None else max(0, end - window), max(0, end))
        head = n // (q.shape[2] // k.shape[2])
        scores = k[b, seen, head] @ q[b, t, n] * (h**-0.5 if scale is None else scale)
        if not len(scores):
            continue
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        lse[b, n, t] = scores.max() + np.log(weights.sum())
        out[b, t, n] = weights / weights.sum() @ v[b, seen, head]
    return out, lse


def inputs(shape: tuple[int, ...], slots: int = 23, seed: int = 0) -> list[np.ndarray]:
    t, n, k, h = shape
    rng = np.random.default_rng(seed)
    shapes = ((len(LENGTHS), t, n, h), *[(len(LENGTHS), slots, k, h)] * 2)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def paged(
    caches: list[np.ndarray], lengths: np.ndarray, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the caches as pages in any order among pages of NaN, and the table of each row.

    Slots that are not filled hold NaN, and so do the pages that entries beyond the length name.
    """
    b, slots = caches[0].shape[:2]
    pages = -(-slots // SIZE)
    order = rng.permutation(b * pages + 3)[: b * pages].reshape(b, pages)
    filled = np.arange(pages * SIZE) < lengths[:, None]
    pools = []
    for cache in caches:
        cache = np.pad(cache, ((0, 0), (0, pages * SIZE - slots), (0, 0), (0, 0)))
        cache = np.where(filled[..., None, None], cache, np.nan)
        pool = np.full((b * pages + 3, SIZE, *cache.shape[2:]), np.nan, np.float32)
        pool[order] = cache.reshape(b, pages, SIZE, *cache.shape[2:])
        pools.append(pool)
    table = np.where(filled[:, ::SIZE], order, rng.choice([-1, 10**6], order.shape))
    return pools, table.astype(np.int32)


# Programs are shared by all tests: the windows are traced, lengths and tables are arguments.
# Interpreted kernels take longer to compile than to run.
@partial(
    jax.jit,
    static_argnames=("backend", "softcap", "scale"),
    compiler_options={"xla_backend_optimization_level": 0},
)
def call(q: Any, k: Any, v: Any, lengths: Any, **options: Any) -> Any:
    return aya_kernels.decode_attention(q, k, v, lengths, return_lse=True, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_matches_definition(options: dict[str, Any], shape: tuple[int, ...], backend: str) -> None:
    q, *caches = inputs(shape)
    out, lse = definition(q, *caches, LENGTHS, **options)
    pages, table = paged(caches, LENGTHS, np.random.default_rng(1))
    contiguous = call(q, *caches, LENGTHS, backend=backend, **options)
    from_pages = call(q, *pages, LENGTHS, page_table=table, backend=backend, **options)
    for got in (contiguous, from_pages):
        np.testing.assert_allclose(got[0], out, atol=2e-5, rtol=2e-5)
        np.testing.assert_allclose(got[1], lse, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_query_without_its_axis(backend: str) -> None:
    q, *caches = inputs(SHAPES["one query"])
    out, lse = call(q[:, 0], *caches, LENGTHS, backend=backend)
    want = definition(q, *caches, LENGTHS)
    np.testing.assert_allclose(out, want[0][:, 0], atol=2e-5)
    np.testing.assert_allclose(lse, want[1][..., 0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slots", [1, 3, 8, 24])
def test_caches_of_any_size(slots: int, backend: str) -> None:
    q, *caches = inputs(SHAPES["one query"], slots)
    # A length beyond the cache is its end.
    got = call(q, *caches, LENGTHS, backend=backend)[0]
    want = definition(q, *caches, np.minimum(LENGTHS, slots))[0]
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_ten_thousand(backend: str) -> None:
    q, k, v = inputs(SHAPES["one query"])
    # Whole numbers, so that float32 scores are exact.
    q, k = (np.random.default_rng(1).integers(-25, 26, x.shape).astype(np.float32) for x in (q, k))
    q[-1], k[-1, 4] = 25, 25
    got = call(q, k, v, LENGTHS, scale=1.0, backend=backend)[0]
    np.testing.assert_allclose(got, definition(q, k, v, LENGTHS, scale=1.0)[0], atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 3])
def test_what_is_not_seen_may_be_anything(window: int | None, backend: str) -> None:
    q, k, v = inputs(SHAPES["one query"])
    options = {} if window is None else {"window": window}
    clean = call(q, k, v, LENGTHS, backend=backend, **options)
    first = 0 if window is None else LENGTHS - window
    slots = np.arange(k.shape[1])
    hidden = (slots >= LENGTHS[:, None]) | (slots < np.reshape(first, (-1, 1)))
    for garbage in (np.nan, np.inf):
        k[hidden], v[hidden] = garbage, garbage
        for got, want in zip(
            call(q, k, v, LENGTHS, backend=backend, **options), clean, strict=True
        ):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999))
def test_pages_may_lie_in_any_order(backend: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, *caches = inputs(SHAPES["one query"], seed=seed)
    lengths = rng.integers(0, 24, len(LENGTHS)).astype(np.int32)
    pages, table = paged(caches, lengths, rng)
    got = call(q, *pages, lengths, page_table=table, backend=backend)
    want = call(q, *caches, lengths, backend=backend)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), cut=st.integers(0, 23))
def test_two_parts_of_the_keys_combine_to_the_whole(backend: str, seed: int, cut: int) -> None:
    q, *caches = inputs(SHAPES["one query"], seed=seed)
    lengths = np.random.default_rng(seed).integers(0, 24, len(LENGTHS)).astype(np.int32)
    whole = call(q, *caches, lengths, backend=backend)
    # The second part comes first in its cache, so that both are calls of one shape.
    later = [np.roll(x, -cut, axis=1) for x in caches]
    parts = [
        call(q, *caches, np.minimum(lengths, cut), backend=backend),
        call(q, *later, np.maximum(lengths - cut, 0), backend=backend),
    ]
    parts = [(np.asarray(out), np.swapaxes(lse, 1, 2)) for out, lse in parts]
    stacked = (np.stack(arrays) for arrays in zip(*parts, strict=True))
    for out, lse in (combine(*parts[0], *parts[1]), combine_all(*stacked, 0)):
        np.testing.assert_allclose(out, whole[0], atol=2e-6)
        np.testing.assert_allclose(np.swapaxes(lse, 1, 2), whole[1], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 6])
def test_equals_the_last_rows_of_attention(window: int | None, backend: str) -> None:
    q, k, v = inputs(SHAPES["three queries, odd sizes"])
    queries = np.random.default_rng(2).normal(size=(len(q), 23, *q.shape[2:])).astype(np.float32)
    queries[:, -3:] = q
    options = {} if window is None else {"window": window}
    out, lse = aya_kernels.attention(queries, k, v, backend="reference", return_lse=True, **options)
    got = call(q, k, v, np.full(len(q), 23, np.int32), backend=backend, **options)
    np.testing.assert_allclose(got[0], out[:, -3:], atol=2e-6)
    np.testing.assert_allclose(got[1], lse[..., -3:], atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_sums_in_float32(backend: str) -> None:
    # In bfloat16 a sum of ones stops at 256.
    q, cache = jnp.zeros((1, 2, 16), jnp.bfloat16), jnp.ones((1, 300, 1, 16), jnp.bfloat16)
    out, lse = call(q, cache, cache, jnp.array([300]), backend=backend)
    assert out.dtype == jnp.bfloat16 and lse.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=2**-8)
    np.testing.assert_allclose(lse, np.log(300), rtol=1e-6)


def test_xla_reads_blocks_of_a_long_cache() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(3, n, 2, 8)).astype(np.float32) for n in (1, 1300, 1300))
    lengths = np.array([0, 700, 1300], np.int32)
    pages, table = (x.reshape(-1, 100, 2, 8) for x in (k, v)), np.arange(39).reshape(3, 13)
    for options in ({}, {"window": 90}):
        want = definition(q, k, v, lengths, **options)
        got = call(q, k, v, lengths, backend="xla", **options)
        np.testing.assert_allclose(got[0], want[0], atol=2e-5)
        np.testing.assert_allclose(got[1], want[1], atol=2e-5, rtol=2e-5)
    got = call(q, *pages, lengths, page_table=table, backend="xla")
    np.testing.assert_allclose(got[0], definition(q, k, v, lengths)[0], atol=2e-5)


MESHES = [
    # Rows and heads over two devices each; pages, whose rows are anywhere.
    (backend, is_paged, window)
    for backend in ("mosaic_tpu", "triton")
    for is_paged, window in ((False, 5), (True, None))
]


@pytest.fixture(scope="module")
def spread() -> dict[Any, list[float]]:
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("spread_decode.py")), json.dumps(MESHES)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(MESHES, json.loads(done.stdout), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", MESHES, ids=str)
def test_many_devices_give_what_one_gives(spread: dict[Any, list[float]], case: Any) -> None:
    assert max(spread[case]) < 2e-6


def test_heads_that_do_not_divide_are_left_to_the_compiler() -> None:
    q, *caches = inputs(SHAPES["one query"])
    place = aya_kernels.Placement(AbstractMesh((4,), ("a",)), heads=("a",))
    with pytest.raises(ValueError, match="2 key heads do not divide into the 4 parts"):
        aya_kernels.decode_attention(q, *caches, LENGTHS, placement=place, backend="mosaic_tpu")


@pytest.mark.parametrize("page", [None, 16, 128])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_triton_lowers_for_cuda(dtype: Any, page: int | None) -> None:
    array = jax.ShapeDtypeStruct
    shape = (64, 8192, 8, 128) if page is None else (64 * 8192 // page, page, 8, 128)
    table = None if page is None else array((64, 8192 // page), jnp.int32)
    args = (
        array((64, 2, 32, 128), dtype),
        *[array(shape, dtype)] * 2,
        array((64,), jnp.int32),
    )
    kind = "NVIDIA H100 80GB HBM3"
    with (
        aya_kernels.target("cuda", kind, 9.0),
        use_abstract_mesh(
            AbstractMesh((1,), ("x",), abstract_device=AbstractDevice(kind, 132, "gpu"))
        ),
    ):
        traced = call.trace(*args, page_table=table, window=array((), jnp.int32), backend="triton")
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 1
    # The caches go into the kernel as they are.
    cache = "x".join(map(str, shape))
    assert f"tensor<{cache}" in text
    assert not [
        line for line in text.splitlines() if "stablehlo" in line and f"tensor<{cache}" in line
        and "custom_call" not in line
    ]  # fmt: skip


def test_which_backend_and_why_not_another() -> None:
    array = partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    cache, lengths = array((2, 64, 8, 64)), jax.ShapeDtypeStruct((2,), jnp.int32)
    request = ("decode_attention", array((2, 32, 64)), cache, cache, lengths)
    with aya_kernels.target("tpu", "TPU v6 lite"):
        told = aya_kernels.explain(*request)
    assert told.chosen == "xla"
    assert "8 key heads of 64 do not fill tiles" in told.others["mosaic_tpu"]
    assert "written for cuda" in told.others["triton"]
    with aya_kernels.target("cuda", "Tesla T4", 7.5):
        told = aya_kernels.explain(*request)
    assert told.chosen == "xla" and "compute capability 8.0" in told.others["triton"]
    with aya_kernels.target("cuda", "NVIDIA A100", 8.0):
        assert aya_kernels.explain(*request, backend="triton").chosen == "triton"
    assert aya_kernels.explain(*request).chosen == "xla"


def test_what_does_not_fit() -> None:
    q, k, v = inputs(SHAPES["one query"])
    table = np.zeros((len(LENGTHS), 2), np.int32)
    with pytest.raises(ValueError, match="no backend 'pallas'"):
        aya_kernels.decode_attention(q, k, v, LENGTHS, backend="pallas")
    with pytest.raises(ValueError, match="do not fit"):
        aya_kernels.decode_attention(q, k, v, LENGTHS[:2])
    with pytest.raises(ValueError, match="page_table"):
        aya_kernels.decode_attention(q, k, v, LENGTHS, page_table=table[:2])
    with pytest.raises(ValueError, match="must all be bfloat16 or float32"):
        aya_kernels.decode_attention(q.astype(jnp.bfloat16), k, v, LENGTHS, backend="triton")
