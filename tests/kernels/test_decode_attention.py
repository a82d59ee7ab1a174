"""Every backend of decode_attention against the definition in NumPy float64."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aya_kernels

BACKENDS = ["reference", "xla"]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 3},
    "window beyond the cache": {"window": 100},
    "softcap": {"softcap": 0.5},
    "scale": {"scale": 1.5, "window": 7, "softcap": 4.0},
}
LENGTHS = np.array([0, 1, 5, 20], np.int32)


def definition(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    lengths: np.ndarray,
    *,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> np.ndarray:
    """Return out in float64 by loops over rows and heads."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, n in np.ndindex(q.shape[:2]):
        head = n // (q.shape[1] // k.shape[2])
        first = 0 if window is None else max(0, lengths[b] - window)
        if lengths[b] == 0:
            continue
        seen = slice(first, lengths[b])
        scores = k[b, seen, head] @ q[b, n] * (q.shape[-1] ** -0.5 if scale is None else scale)
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        out[b, n] = weights / weights.sum() @ v[b, seen, head]
    return out


def inputs(n: int, k: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=shape).astype(np.float32)
        for shape in ((4, n, 16), (4, 20, k, 16), (4, 20, k, 16))
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [(4, 2), (4, 1)])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_matches_definition(options: dict[str, Any], heads: tuple[int, int], backend: str) -> None:
    arrays = inputs(*heads)
    call = jax.jit(partial(aya_kernels.decode_attention, backend=backend, **options))
    got = call(*arrays, LENGTHS)
    np.testing.assert_allclose(got, definition(*arrays, LENGTHS, **options), atol=2e-5, rtol=2e-5)
    assert (np.asarray(got)[0] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_ten_thousand(backend: str) -> None:
    rng = np.random.default_rng(1)
    q, k = (rng.integers(-25, 26, shape) for shape in ((4, 2, 16), (4, 20, 2, 16)))
    arrays = [x.astype(np.float32) for x in (q, k, rng.normal(size=k.shape))]
    arrays[0][3], arrays[1][3, 4] = 25, 25
    got = aya_kernels.decode_attention(*arrays, LENGTHS, scale=1.0, backend=backend)
    np.testing.assert_allclose(got, definition(*arrays, LENGTHS, scale=1.0), atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unfilled_slots_do_not_matter(backend: str) -> None:
    q, k, v = inputs(4, 2)
    clean = aya_kernels.decode_attention(q, k, v, LENGTHS, backend=backend)
    unfilled = np.arange(20) >= LENGTHS[:, None]
    k[unfilled], v[unfilled] = 1e9, -1e9
    np.testing.assert_array_equal(
        aya_kernels.decode_attention(q, k, v, LENGTHS, backend=backend), clean
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_last_row_of_attention(backend: str) -> None:
    q, k, v = inputs(4, 2)
    queries = np.random.default_rng(2).normal(size=(4, 20, 4, 16)).astype(np.float32)
    queries[:, -1] = q
    whole = aya_kernels.attention(queries, k, v, window=6, backend="reference")
    step = jax.jit(
        lambda window: aya_kernels.decode_attention(
            q, k, v, np.full(4, 20, np.int32), window=window, backend=backend
        )
    )
    np.testing.assert_allclose(step(6), whole[:, -1], atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_sums_in_float32(backend: str) -> None:
    q, cache = jnp.zeros((1, 2, 16), jnp.bfloat16), jnp.ones((1, 300, 1, 16), jnp.bfloat16)
    out = aya_kernels.decode_attention(q, cache, cache, jnp.array([300]), backend=backend)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=2**-8)


def test_unknown_backend_and_shapes() -> None:
    q, k, v = inputs(4, 2)
    with pytest.raises(ValueError, match="no backend 'pallas'"):
        aya_kernels.decode_attention(q, k, v, LENGTHS, backend="pallas")
    with pytest.raises(ValueError, match="do not fit"):
        aya_kernels.decode_attention(q, k, v, LENGTHS[:2])
