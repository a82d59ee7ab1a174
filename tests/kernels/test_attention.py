"""Every backend of attention against the definition in NumPy float64, forward and backward.

What a kernel is compiled for (shapes, dtype, which options there are) is a `Program`; what it is then
given is a case of it. Interpreted kernels take seconds to compile and little to run, so that a program
has many cases.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aya_kernels
from aya_kernels.attention.api import BACKENDS
from aya_kernels.attention.combine import combine

pytestmark = pytest.mark.usefixtures("compiled_once")

MASKED = -1e30
# These take 16 bits only; what they do with float32 is to say so.
SIXTEEN_BITS = {"mosaic_gpu"}
FLOAT32 = [name for name in BACKENDS if name not in SIXTEEN_BITS]


class Program(NamedTuple):
    """The sizes and options of a call that a kernel is compiled for."""

    t: int
    s: int
    n: int = 4
    k: int = 2
    h: int = 16
    b: int = 2
    causal: bool = True
    softcap: float | None = None
    scale: float | None = None


class Case(NamedTuple):
    """What a program is given: segment ids as documents (see `documents`), a window, offsets."""

    q_ids: Any = None
    kv_ids: Any = None
    window: int | None = None
    offsets: tuple[int, int] | None = None


def documents(length: int, *lengths: int) -> np.ndarray:
    """Return the ids of documents of these lengths, padding where one is below 0 and at the end."""
    ids = [number if n > 0 else 0 for number, n in enumerate(lengths, 1) for _ in range(abs(n))]
    return np.array(ids + [0] * (length - len(ids)), np.int32)[:length]


def alike(*lengths: int, window: int, offsets: tuple[int, int] = (0, 0), length: int) -> Case:
    """A case whose queries and keys are the same documents."""
    ids = documents(length, *lengths)
    return Case(ids, ids, window, offsets)


EVERY = partial(alike, length=140)
# All options present, so that each can be made to do nothing.
PACKED = {
    "nothing masked": EVERY(140, window=2**31 - 1),
    "packed": EVERY(10, 120, window=500),
    "padding first, between and last": EVERY(-7, 60, -3, 61, window=500),
    "packed, window": EVERY(3, 130, window=30),
    "window of one": EVERY(140, window=1),
    "window of none": EVERY(140, window=0),
    "window of the length": EVERY(140, window=140),
    "one segment a token": EVERY(*[1] * 140, window=500),
    "only padding": EVERY(window=500),
    "no key of the segment": Case(*(np.full(140, i, np.int32) for i in (1, 2)), 500, (0, 0)),
    "ids in no order": Case(*(np.arange(140) * i % 4 for i in (1, 3)), 500, (0, 0)),
    "queries after the keys": EVERY(140, window=500, offsets=(100, 0)),
    "queries after the keys, window": EVERY(140, window=30, offsets=(100, 0)),
    "queries before most keys": EVERY(140, window=500, offsets=(0, 130)),
    "queries before all keys": EVERY(140, window=500, offsets=(0, 140)),
    "both far along": EVERY(100, 40, window=50, offsets=(10**6, 10**6)),
}
BOTH_WAYS = {
    "wide": Case(window=1000, offsets=(0, 0)),
    "narrow": Case(window=20, offsets=(0, 0)),
    "apart": Case(window=60, offsets=(40, 7)),
    "too far apart": Case(window=60, offsets=(1000, 7)),
}
NOTHING = {"": Case()}

# The few that follow cover every option; heads of 16 and less are quick, those of 64 to 256 real.
GRID = {
    "every option": (Program(140, 140, b=1, softcap=3.0, scale=0.4), PACKED),
    "both ways": (Program(70, 150, n=2, k=2, causal=False), BOTH_WAYS),
    "more queries than keys": (Program(150, 20, n=4, k=1, h=5, b=1), NOTHING),
    "more keys than queries": (Program(20, 150, h=80, b=1), NOTHING),
    "length one": (Program(1, 1, n=2, k=2, h=64), NOTHING),
    "groups of four, heads of 128": (Program(129, 129, n=8, k=2, h=128, b=1), NOTHING),
    "one key head, heads of 256": (Program(40, 40, n=3, k=1, h=256, b=1, softcap=0.5), NOTHING),
    "many blocks": (
        Program(700, 700, n=1, k=1, h=8, b=1),
        {
            "packed": Case(*[documents(700, 100, 300, 256, -10, 20)] * 2),
            "short": Case(*[documents(700, *[50] * 12)] * 2),
        },
    ),
}
# For 16 bits, and for interpreters that are slow.
SHORT_GRID = {
    "every option": (
        Program(140, 140, n=2, k=1, h=64, b=1, softcap=3.0, scale=0.4),
        {
            name: PACKED[name]
            for name in ("padding first, between and last", "packed, window", "only padding")
        }
        | {"queries before most keys": PACKED["queries before most keys"]},
    ),
    "both ways": (
        Program(70, 150, n=1, k=1, h=40, b=1, causal=False),
        {name: BOTH_WAYS[name] for name in ("apart", "too far apart")},
    ),
    "causal": (Program(140, 140, n=2, k=1, h=128, b=1), NOTHING),
}


def mask_of(p: Program, case: Case) -> np.ndarray:
    """Return bool [T, S] by the words of `aya_kernels.attention`."""
    q_start, kv_start = (0, 0) if case.offsets is None else case.offsets
    i, j = q_start + np.arange(p.t)[:, None], kv_start + np.arange(p.s)[None]
    mask = np.ones((p.t, p.s), bool)
    if p.causal:
        mask &= j <= i
    if case.window is not None:
        mask &= i - case.window < j
        mask &= p.causal | (j < i + case.window)
    if case.q_ids is not None:
        mask &= (case.q_ids[:, None] == case.kv_ids[None]) & (case.q_ids > 0)[:, None]
    return mask


def definition(p: Program, case: Case, arrays: Any) -> tuple[np.ndarray, ...]:
    """Return out, lse, dq, dk, dv of `sum(g * out) + sum(g_lse * lse)` in float64."""
    q, k, v, g, g_lse = (np.asarray(x, np.float64) for x in arrays)
    groups = p.n // p.k
    keys, values = (np.repeat(x, groups, axis=2) for x in (k, v))
    mask = mask_of(p, case)
    scale = p.h**-0.5 if p.scale is None else p.scale
    scores = scale * np.einsum("btnh,bsnh->bnts", q, keys)
    slope = np.ones_like(scores)
    if p.softcap is not None:
        scores = p.softcap * np.tanh(scores / p.softcap)
        slope = 1 - (scores / p.softcap) ** 2
    scores = np.where(mask, scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=MASKED)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    lse = np.where(total > 0, top + np.log(np.maximum(total, 1e-300)), MASKED)[..., 0]
    weights /= np.where(total > 0, total, 1)
    out = np.einsum("bnts,bsnh->btnh", weights, values)
    d_weights = np.einsum("btnh,bsnh->bnts", g, values)
    mean = (weights * d_weights).sum(-1, keepdims=True)
    d_scores = weights * (d_weights - mean + g_lse[..., None]) * slope * scale
    dq = np.einsum("bnts,bsnh->btnh", d_scores, keys)
    dk = np.einsum("bnts,btnh->bsnh", d_scores, q)
    dv = np.einsum("bnts,btnh->bsnh", weights, g)
    dk, dv = (x.reshape(p.b, p.s, p.k, groups, p.h).sum(3) for x in (dk, dv))
    return out, lse, dq, dk, dv


def arrays_of(p: Program, dtype: Any = jnp.float32, seed: int = 0) -> list[jax.Array]:
    """Return q, k, v and the cotangents of out and of the log-sum-exp."""
    rng = np.random.default_rng(seed)
    query, key = (p.b, p.t, p.n, p.h), (p.b, p.s, p.k, p.h)
    arrays = [jnp.asarray(rng.normal(size=size), dtype) for size in (query, key, key, query)]
    return [*arrays, jnp.asarray(rng.normal(size=(p.b, p.n, p.t)), jnp.float32)]


@partial(jax.jit, static_argnums=(0, 1))
def both(p: Program, backend: str, arrays: Any, ids: Any, window: Any, offsets: Any) -> Any:
    """Return out, lse, dq, dk, dv; the window and the offsets are traced."""
    q, k, v, g, g_lse = arrays
    call = partial(
        aya_kernels.attention,
        causal=p.causal,
        segment_ids=ids,
        window=window,
        softcap=p.softcap,
        scale=p.scale,
        q_offset=offsets and offsets[0],
        kv_offset=offsets and offsets[1],
        return_lse=True,
        backend=backend,
    )
    found, pull = jax.vjp(call, q, k, v)
    return *found, *pull((g, g_lse))


def run(p: Program, backend: str, case: Case, arrays: Any) -> list[np.ndarray]:
    ids = None
    if case.q_ids is not None:
        ids = tuple(jnp.tile(jnp.asarray(a, jnp.int32), (p.b, 1)) for a in case[:2])
    offsets = None if case.offsets is None else tuple(map(jnp.int32, case.offsets))
    window = None if case.window is None else jnp.int32(case.window)
    return [np.asarray(x, np.float64) for x in both(p, backend, arrays, ids, window, offsets)]


def check_zeros(p: Program, case: Case, found: Any) -> None:
    """Assert that what sees nothing, or is seen by nothing, is exactly as it has to be."""
    mask = mask_of(p, case)
    unseeing, unseen = ~mask.any(1), ~mask.any(0)
    out, lse, dq, dk, dv = found
    assert (out[:, unseeing] == 0).all() and (dq[:, unseeing] == 0).all()
    assert (lse[:, :, unseeing] == np.float32(MASKED)).all()
    assert (dk[:, unseen] == 0).all() and (dv[:, unseen] == 0).all()


def check_near(found: Any, truth: Any, forward: float = 2e-5, backward: float = 1e-4) -> None:
    for tolerance, got, want in zip((forward,) * 2 + (backward,) * 3, found, truth, strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", GRID)
@pytest.mark.parametrize("backend", FLOAT32)
def test_float32(backend: str, name: str) -> None:
    p, cases = GRID[name]
    arrays = arrays_of(p)
    for case in cases.values():
        found = run(p, backend, case, arrays)
        check_zeros(p, case, found)
        check_near(found, definition(p, case, arrays))


@partial(jax.jit, static_argnums=0)
def plain_xla(p: Program, arrays: Any, mask: Any) -> Any:
    """Return out, lse, dq, dk, dv of attention written out for XLA to differentiate."""
    q, k, v, g, g_lse = arrays

    def call(q: Any, k: Any, v: Any) -> Any:
        k, v = (jnp.repeat(x, p.n // p.k, axis=2) for x in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32)
        scores = scores * (p.h**-0.5 if p.scale is None else p.scale)
        if p.softcap is not None:
            scores = p.softcap * jnp.tanh(scores / p.softcap)
        scores = jnp.where(mask, scores, MASKED)
        weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0).astype(v.dtype)
        return jnp.einsum("bnts,bsnh->btnh", weights, v), jax.nn.logsumexp(scores, axis=-1)

    found, pull = jax.vjp(call, q, k, v)
    return *found, *pull((g, g_lse))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT_GRID)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_is_as_good_as_plain_xla(backend: str, name: str) -> None:
    p, cases = SHORT_GRID[name]
    arrays = arrays_of(p, jnp.bfloat16)
    for case in cases.values():
        found = run(p, backend, case, arrays)
        check_zeros(p, case, found)
        truth = definition(p, case, arrays)
        plain = [np.asarray(x, np.float64) for x in plain_xla(p, arrays, mask_of(p, case))]
        errors, plain_errors, xla_errors = (
            [np.sqrt(((x - want) ** 2).mean()) for x, want in zip(results, truth, strict=True)]
            for results in (found, plain, run(p, "xla", case, arrays))
        )
        # Of the gradients the bar is the worse of two programs of plain XLA: one rounds the gradient to
        # the probabilities, the other the output from which it works out their mean.
        bars = plain_errors[:2] + np.maximum(plain_errors, xla_errors)[2:].tolist()
        for error, bar in zip(errors, bars, strict=True):
            assert error <= 1.2 * bar + 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_sixteen_bits_sum_in_float32(backend: str) -> None:
    # 300 equal weights: a bfloat16 sum of ones would stop growing at 256.
    q, k = jnp.zeros((1, 300, 2, 64), jnp.bfloat16), jnp.zeros((1, 300, 1, 64), jnp.bfloat16)
    call = jax.jit(partial(aya_kernels.attention, causal=False, backend=backend))
    out = call(q, k, jnp.ones_like(k))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=2**-8)


@pytest.mark.parametrize("backend", FLOAT32)
def test_scores_of_ten_thousand(backend: str) -> None:
    # Whole numbers, so that float32 scores up to 16 * 25 * 25 are exact.
    p = Program(140, 140, b=1, scale=1.0)
    rng = np.random.default_rng(1)
    _, _, *rest = arrays_of(p)
    sizes = (1, 140, 4, 16), (1, 140, 2, 16)
    q, k = (rng.integers(-25, 26, size).astype(np.float32) for size in sizes)
    q[:, 3], k[:, 3] = 25, 25
    q[:, 4], k[:, 4] = 25, -25
    arrays = [jnp.asarray(q), jnp.asarray(k), *rest]
    truth = definition(p, Case(), arrays)
    assert truth[1].max() == 10_000
    found = run(p, backend, Case(), arrays)
    np.testing.assert_allclose(found[0], truth[0], atol=2e-5, rtol=2e-5)
    # A float32 of this size is a thousandth off.
    np.testing.assert_allclose(found[1], truth[1], atol=1e-3)
    for got, want in zip(found[2:], truth[2:], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("backend", sorted(SIXTEEN_BITS & set(BACKENDS)))
def test_float32_is_refused_by_what_cannot_take_it(backend: str) -> None:
    x = jnp.zeros((1, 4, 1, 64))
    with pytest.raises(ValueError, match="float32"):
        aya_kernels.attention(x, x, x, backend=backend)


@partial(jax.jit, static_argnames=("backend", "causal"))
def _attend(
    q: Any, k: Any, v: Any, q_ids: Any, kv_ids: Any, *, backend: str, causal: bool = True,
    kv_offset: Any = None,
) -> Any:  # fmt: skip
    return aya_kernels.attention(
        q,
        k,
        v,
        causal=causal,
        segment_ids=(q_ids, kv_ids),
        window=9,
        kv_offset=kv_offset,
        return_lse=True,
        backend=backend,
    )


LENGTH = 32
# Lengths of documents that fit into a row.
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6).filter(lambda x: sum(x) <= LENGTH)
ALL_BACKENDS = pytest.mark.parametrize("backend", FLOAT32)


def draw(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(1, LENGTH, n, 8)).astype(np.float32) for n in (2, 1, 1)]


def row(*lengths: int) -> np.ndarray:
    return documents(LENGTH, *lengths)[None]


@ALL_BACKENDS
@settings(max_examples=8, deadline=None, derandomize=True)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_packed_equals_unpacked(backend: str, lengths: list[int], seed: int) -> None:
    arrays, ids = draw(seed), row(*lengths)
    together, _ = _attend(*arrays, ids, ids, backend=backend)
    for length, end in zip(lengths, np.cumsum(lengths), strict=True):
        own = [np.roll(x, length - end, axis=1) for x in arrays]
        alone, _ = _attend(*own, row(length), row(length), backend=backend)
        np.testing.assert_allclose(together[:, end - length : end], alone[:, :length], atol=1e-6)


@ALL_BACKENDS
@settings(max_examples=8, deadline=None, derandomize=True)
@given(lengths=LENGTHS, seed=st.integers(0, 99), data=st.data())
def test_permuted_documents_give_permuted_outputs(
    backend: str, lengths: list[int], seed: int, data: Any
) -> None:
    arrays, ids = draw(seed), row(*lengths)
    ends = np.cumsum(lengths)
    places = [np.arange(end - n, end) for n, end in zip(lengths, ends, strict=True)]
    order = data.draw(st.permutations(range(len(lengths))))
    moved = np.concatenate([places[i] for i in order] + [np.arange(sum(lengths), LENGTH)])
    straight, lse = _attend(*arrays, ids, ids, backend=backend)
    # The ids move along, so that they are in no order then.
    arrays, ids = [x[:, moved] for x in arrays], ids[:, moved]
    permuted, permuted_lse = _attend(*arrays, ids, ids, backend=backend)
    np.testing.assert_allclose(permuted, straight[:, moved], atol=1e-6)
    np.testing.assert_allclose(permuted_lse, lse[..., moved], atol=1e-6)


@ALL_BACKENDS
@settings(max_examples=8, deadline=None, derandomize=True)
@given(lengths=LENGTHS, seed=st.integers(0, 99), causal=st.booleans())
def test_parts_of_the_keys_combine_to_the_whole(
    backend: str, lengths: list[int], seed: int, causal: bool
) -> None:
    (q, k, v), ids = draw(seed), row(*lengths)
    attend = partial(_attend, backend=backend, causal=causal)
    whole, lse = attend(q, k, v, ids, ids)
    halves = [
        attend(q, *(x[:, start : start + 16] for x in (k, v)), ids, ids[:, start : start + 16],
               kv_offset=start)
        for start in (0, 16)
    ]  # fmt: skip
    (out_a, lse_a), (out_b, lse_b) = ((out, jnp.swapaxes(lse, 1, 2)) for out, lse in halves)
    out, joint = combine(out_a, lse_a, out_b, lse_b)
    np.testing.assert_allclose(out, whole, atol=1e-6)
    np.testing.assert_allclose(jnp.swapaxes(joint, 1, 2), lse, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "xla"])
@pytest.mark.parametrize("window", [7, 2**40])
def test_a_plain_number_for_a_window(backend: str, window: int) -> None:
    p = Program(40, 40)
    q, k, v, *_ = arrays = arrays_of(p)
    out = aya_kernels.attention(q, k, v, window=window, backend=backend)
    truth = definition(p, Case(window=window), arrays)[0]
    np.testing.assert_allclose(out, truth, rtol=2e-5, atol=2e-5)


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
