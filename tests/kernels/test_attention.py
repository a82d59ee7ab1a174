"""Every backend of attention against the definition in NumPy float64, forward and backward."""

import importlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aya_kernels

BACKENDS = ["reference", "xla", "mosaic_tpu"]


class Case(NamedTuple):
    """Sizes, options and the segment ids of a call: a function of (rng, B, length), or None."""

    t: int
    s: int
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    ids: Any = None
    b: int = 2
    n: int = 4
    k: int = 2
    h: int = 16


def packed(rng: np.random.Generator, b: int, length: int) -> np.ndarray:
    """Documents 3, 2, 1 one after another, then padding."""
    return -np.sort(-rng.integers(0, 4, (b, length)), axis=1)


def one_each(rng: np.random.Generator, b: int, length: int) -> np.ndarray:
    return np.tile(np.arange(1, length + 1), (b, 1))


def all_padding(rng: np.random.Generator, b: int, length: int) -> np.ndarray:
    return np.zeros((b, length), int)


def lonely(rng: np.random.Generator, b: int, length: int) -> np.ndarray:
    """Segments by length, so that queries and keys of unlike lengths share none."""
    return np.full((b, length), length)


CASES = {
    "causal": Case(130, 130),
    "more keys than queries": Case(20, 150, causal=False),
    "more queries than keys": Case(150, 20, window=40),
    "length one": Case(1, 1, b=1),
    "all heads share one key head": Case(9, 9, n=4, k=1),
    "window over many blocks": Case(300, 300, window=100, b=1, n=2, k=1),
    "window both ways": Case(300, 300, window=50, causal=False, b=1, n=2, k=1),
    "window beyond the length": Case(20, 20, window=1000),
    "softcap": Case(40, 40, softcap=0.5),
    "packed": Case(300, 300, ids=packed),
    "packed, window, softcap": Case(140, 140, window=30, softcap=2.0, ids=packed),
    "one segment a token": Case(20, 20, causal=False, ids=one_each),
    "only padding": Case(20, 20, ids=all_padding),
    "no key of the segment": Case(20, 30, ids=lonely),
}


def definition(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float,
    segment_ids: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, ...]:
    """Return out, dq, dk, dv in float64 by loops over rows, heads and queries."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
    out, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b, t, n in np.ndindex(q.shape[:3]):
        head = n // (q.shape[2] // k.shape[2])
        seen = [
            s
            for s in range(k.shape[1])
            if (not causal or s <= t)
            and (window is None or abs(t - s) < window)
            and (segment_ids is None or segment_ids[0][b, t] == segment_ids[1][b, s] != 0)
        ]
        if not seen:
            continue
        keys, values = k[b, seen, head], v[b, seen, head]
        scores = scale * keys @ q[b, t, n]
        slope = np.ones_like(scores)
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
            slope = 1 - (scores / softcap) ** 2
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[b, t, n] = weights @ values
        d_weights = values @ g[b, t, n]
        d_products = weights * (d_weights - weights @ d_weights) * slope * scale
        dq[b, t, n] = d_products @ keys
        dk[b, seen, head] += d_products[:, None] * q[b, t, n]
        dv[b, seen, head] += weights[:, None] * g[b, t, n]
    return out, dq, dk, dv


def run(backend: str, q: Any, k: Any, v: Any, g: Any, **options: Any) -> tuple[np.ndarray, ...]:
    """Return out, dq, dk, dv of a backend."""

    @jax.jit
    def both(q: Any, k: Any, v: Any, g: Any) -> Any:
        call = partial(aya_kernels.attention, backend=backend, **options)
        out, pull = jax.vjp(call, q, k, v)
        return out, *pull(g)

    return tuple(np.asarray(x, np.float64) for x in both(q, k, v, g))


def inputs(case: Case) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Return float32 q, k, v, g and the options of a case."""
    rng = np.random.default_rng(0)
    query, key = (case.b, case.t, case.n, case.h), (case.b, case.s, case.k, case.h)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in (query, key, key, query)]
    options = {"causal": case.causal, "window": case.window, "softcap": case.softcap}
    if case.ids is not None:
        q_ids = case.ids(rng, case.b, case.t).astype(np.int32)
        kv_ids = q_ids if case.s == case.t else case.ids(rng, case.b, case.s).astype(np.int32)
        options["segment_ids"] = (q_ids, kv_ids)
    return arrays, options


@pytest.fixture(scope="module", params=CASES)
def known(request: pytest.FixtureRequest) -> Any:
    """A case with its truth, worked out once for all backends."""
    arrays, options = inputs(CASES[request.param])
    return arrays, options, definition(*arrays, scale=arrays[0].shape[-1] ** -0.5, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_definition(known: Any, backend: str) -> None:
    arrays, options, (want, *want_gradients) = known
    got, *gradients = run(backend, *arrays, **options)
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)
    for gradient, truth in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(gradient, truth, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_ten_thousand(backend: str) -> None:
    rng = np.random.default_rng(1)
    # Whole numbers, so that float32 scores up to 16 * 25 * 25 are exact.
    q, k = (rng.integers(-25, 26, (1, 40, 2, 16)).astype(np.float32) for _ in range(2))
    q[:, 3], k[:, 3] = 25, 25
    v, g = (rng.normal(size=q.shape).astype(np.float32) for _ in range(2))
    truth = definition(q, k, v, g, scale=1.0)
    got = run(backend, q, k, v, g, scale=1.0)
    np.testing.assert_allclose(got[0], truth[0], atol=2e-5)
    for gradient, want in zip(got[1:], truth[1:], strict=True):
        np.testing.assert_allclose(gradient, want, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_exactly_zero(backend: str) -> None:
    arrays, options = inputs(Case(140, 140, ids=packed))
    padding = options["segment_ids"][0] == 0
    assert padding.any()
    for result in run(backend, *arrays, **options):
        assert np.isfinite(result).all()
        assert (result[padding] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_sums_in_float32(backend: str) -> None:
    # 300 equal weights: a bfloat16 sum of ones would stop growing at 256.
    q, k = jnp.zeros((1, 300, 2, 16), jnp.bfloat16), jnp.zeros((1, 300, 1, 16), jnp.bfloat16)
    call = jax.jit(partial(aya_kernels.attention, causal=False, backend=backend))
    out = call(q, k, jnp.ones_like(k))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=2**-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_near_definition(backend: str) -> None:
    arrays, options = inputs(Case(140, 140, window=60, softcap=5.0, ids=packed))
    arrays = [np.asarray(x).astype(jnp.bfloat16) for x in arrays]
    truth = definition(*arrays, scale=0.25, **options)
    got = run(backend, *arrays, scale=0.25, **options)
    for result, want in zip(got, truth, strict=True):
        np.testing.assert_allclose(result, want, atol=0.02 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_window_may_be_traced(backend: str) -> None:
    (q, k, v, g), _ = inputs(Case(140, 140, b=1, n=2, k=1))
    call = partial(aya_kernels.attention, backend=backend)
    traced = jax.jit(lambda window: call(q, k, v, window=window))
    for window in (1, 130, 2**31 - 1):
        want = definition(q, k, v, g, window=window, scale=0.25)[0]
        np.testing.assert_allclose(traced(window), want, atol=2e-5)


LENGTH = 32


@partial(jax.jit, static_argnames="backend")
def _attend(q: Any, k: Any, v: Any, ids: Any, *, backend: str) -> Any:
    return aya_kernels.attention(q, k, v, segment_ids=(ids, ids), window=9, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_packed_equals_unpacked(backend: str, lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = [n for i, n in enumerate(lengths) if sum(lengths[: i + 1]) <= LENGTH]
    q, k, v = (rng.normal(size=(1, LENGTH, 2, 8)).astype(np.float32) for _ in range(3))
    ids = np.zeros((1, LENGTH), np.int32)
    ends = np.cumsum(lengths)
    for number, (length, end) in enumerate(zip(lengths, ends, strict=True), start=1):
        ids[:, end - length : end] = number
    together = _attend(q, k, v, ids, backend=backend)
    for length, end in zip(lengths, ends, strict=True):
        own = [np.roll(x, length - end, axis=1) for x in (q, k, v)]
        alone = _attend(*own, (np.arange(LENGTH) < length)[None].astype(np.int32), backend=backend)
        np.testing.assert_allclose(together[:, end - length : end], alone[:, :length], atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", [Case(1024, 1024, h=128, window=300), Case(70, 300, causal=False)])
def test_pallas_lowers_for_a_tpu(case: Case, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # By its full name: in the package `attention` is the function.
    kernels = importlib.import_module("aya_kernels.attention.mosaic_tpu")
    monkeypatch.setattr(kernels, "interpreted", lambda: False)
    query, key = (case.b, case.t, case.n, case.h), (case.b, case.s, case.k, case.h)

    def both(q: Any, k: Any, v: Any) -> Any:
        call = partial(aya_kernels.attention, backend="mosaic_tpu")
        out, pull = jax.vjp(partial(call, causal=case.causal, window=case.window), q, k, v)
        return out, pull(out)

    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in (query, key, key)]
    tpu = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=tpu)):
        lowered = jax.jit(both).trace(*shapes).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == 3


def test_no_silent_fallback() -> None:
    x = jnp.zeros((1, 4, 1, 8))
    with pytest.raises(ValueError, match="no backend 'cudnn'"):
        aya_kernels.attention(x, x, x, backend="cudnn")
    with (
        aya_kernels.target("cuda", "NVIDIA A100-SXM4-80GB", 8.0),
        pytest.raises(ValueError, match="written for tpu"),
    ):
        aya_kernels.attention(x, x, x, backend="mosaic_tpu")


def test_shapes_that_do_not_fit() -> None:
    x, three_heads = jnp.zeros((1, 4, 2, 8)), jnp.zeros((1, 4, 3, 8))
    with pytest.raises(ValueError, match="do not fit"):
        aya_kernels.attention(x, three_heads, three_heads)
    ids = jnp.ones((1, 5), jnp.int32)
    with pytest.raises(ValueError, match="segment_ids"):
        aya_kernels.attention(x, x, x, segment_ids=(ids, ids))
