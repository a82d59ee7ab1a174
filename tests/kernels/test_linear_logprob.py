"""Every backend of linear_logprob against the definition in NumPy float64, and its memory."""

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
# More than one chunk of columns, and no multiple of any.
MANY = 10_001


class Case(NamedTuple):
    """Sizes and options of a call."""

    t: int
    v: int
    d: int = 8
    scale: float = 1.0
    softcap: float | None = None
    masked: bool = False


CASES = {
    "small vocabulary": Case(33, 50),
    "one word": Case(5, 1),
    "one token": Case(1, 50),
    "many chunks": Case(33, MANY),
    "whole chunks": Case(9, 8192),
    "scale": Case(9, MANY, scale=0.125),
    "softcap": Case(9, 50, softcap=2.0),
    "softcap, scale, many chunks": Case(9, MANY, softcap=2.0, scale=0.7),
    "mask": Case(33, 50, masked=True),
    "mask, many chunks": Case(33, MANY, masked=True),
}


def definition(
    hidden: np.ndarray,
    weight: np.ndarray,
    targets: np.ndarray,
    g: np.ndarray,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """Return log p(target) and the gradients to hidden, weight and scale, in float64."""
    hidden, weight, g = (np.asarray(x, np.float64) for x in (hidden, weight, g))
    keep = np.ones(len(targets)) if mask is None else mask.astype(np.float64)
    products = hidden @ weight.T
    scores, slope = scale * products, np.ones_like(products)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
        slope = 1 - (scores / softcap) ** 2
    top = scores.max(-1, keepdims=True)
    lse = top + np.log(np.exp(scores - top).sum(-1, keepdims=True))
    hit = np.arange(len(weight)) == targets[:, None]
    logprobs = (scores - lse)[hit] * keep
    d_scores = (hit - np.exp(scores - lse)) * (g * keep)[:, None] * slope
    return (
        logprobs,
        scale * d_scores @ weight,
        scale * d_scores.T @ hidden,
        (d_scores * products).sum(),
    )


def run(
    backend: str, hidden: Any, weight: Any, targets: Any, g: Any, scale: float = 1.0, **options: Any
) -> tuple[np.ndarray, ...]:
    """Return log p(target) and the gradients of a backend, the scale traced."""

    @jax.jit
    def both(hidden: Any, weight: Any, scale: Any, targets: Any, g: Any) -> Any:
        def call(hidden: Any, weight: Any, scale: Any) -> Any:
            return aya_kernels.linear_logprob(
                hidden, weight, targets, scale=scale, backend=backend, **options
            )

        out, pull = jax.vjp(call, hidden, weight, scale)
        assert out.dtype == jnp.float32
        return out, *pull(g)

    return tuple(np.asarray(x, np.float64) for x in both(hidden, weight, scale, targets, g))


@pytest.fixture(scope="module", params=CASES)
def known(request: pytest.FixtureRequest) -> Any:
    """A case with its truth, worked out once for all backends."""
    case = CASES[request.param]
    rng = np.random.default_rng(0)
    hidden, weight = (rng.normal(size=(n, case.d)).astype(np.float32) for n in (case.t, case.v))
    targets = rng.integers(0, case.v, case.t).astype(np.int32)
    targets[-1] = case.v - 1
    g = rng.normal(size=case.t).astype(np.float32)
    options: dict[str, Any] = {"scale": case.scale, "softcap": case.softcap}
    if case.masked:
        options["mask"] = rng.integers(0, 2, case.t).astype(bool)
    arrays = (hidden, weight, targets, g)
    return arrays, options, definition(*arrays, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_definition(known: Any, backend: str) -> None:
    arrays, options, (want, *want_gradients) = known
    got, *gradients = run(backend, *arrays, **options)
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)
    for gradient, truth in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(gradient, truth, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_target_of_many_chunks(backend: str) -> None:
    # Tokens that differ only in their target: the probabilities of all targets sum to one.
    rng = np.random.default_rng(1)
    hidden, weight = np.tile(rng.normal(size=8), (MANY, 1)), rng.normal(size=(MANY, 8))
    targets = np.arange(MANY, dtype=np.int32)
    scores = weight @ hidden[0]
    want = scores - np.log(np.exp(scores).sum())
    call = jax.jit(partial(aya_kernels.linear_logprob, backend=backend))
    got = call(hidden.astype(np.float32), weight.astype(np.float32), targets)
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocabulary", [50, MANY])
def test_logits_of_ten_thousand(backend: str, vocabulary: int) -> None:
    rng = np.random.default_rng(2)
    # Whole numbers, so that float32 logits are exact, in all orders of size.
    hidden = rng.integers(-35, 36, (9, 8)).astype(np.float32)
    weight = rng.integers(-35, 36, (vocabulary, 8)).astype(np.float32)
    hidden[0], weight[:2] = 35, [[35] * 8, [-35] * 8]
    targets = (hidden @ weight.T).argmax(-1).astype(np.int32)
    targets[0] = 1
    g = rng.normal(size=9).astype(np.float32)
    truth = definition(hidden, weight, targets, g)
    assert truth[0][0] == -19_600
    for result, want in zip(run(backend, hidden, weight, targets, g), truth, strict=True):
        np.testing.assert_allclose(result, want, atol=2e-4, rtol=2e-5)


_logprob = jax.jit(aya_kernels.linear_logprob, static_argnames="backend")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), shift=st.sampled_from([0.0, 30.0, 1000.0]))
def test_never_above_zero(backend: str, seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    hidden, weight = (rng.normal(size=(n, 8)).astype(np.float32) for n in (4, 50))
    hidden[:, 0], weight[:, 0] = shift, 1.0
    targets = (hidden @ weight.T).argmax(-1).astype(np.int32)
    assert (_logprob(hidden * 9, weight, targets, backend=backend) <= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_tokens_are_exactly_zero(backend: str) -> None:
    rng = np.random.default_rng(3)
    hidden, weight = (rng.normal(size=(n, 8)).astype(np.float32) for n in (6, 50))
    mask = np.array([True, False] * 3)
    # The targets of masked tokens may be anything, such as the usual -100.
    targets = np.where(mask, 7, -100).astype(np.int32)
    out, d_hidden, d_weight, _ = run(
        backend, hidden, weight, targets, np.ones(6, np.float32), mask=mask
    )
    assert (out[~mask] == 0).all() and (d_hidden[~mask] == 0).all()
    _, _, alone, _ = run(backend, hidden[mask], weight, targets[mask], np.ones(3, np.float32))
    np.testing.assert_allclose(d_weight, alone, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocabulary", [50, MANY])
def test_bfloat16(backend: str, vocabulary: int) -> None:
    rng = np.random.default_rng(4)
    hidden = rng.normal(size=(33, 64)).astype(jnp.bfloat16)
    weight = rng.normal(size=(vocabulary, 64)).astype(jnp.bfloat16)
    targets = rng.integers(0, vocabulary, 33).astype(np.int32)
    g = rng.normal(size=33).astype(np.float32)
    truth = definition(hidden, weight, targets, g, scale=0.125)
    got = run(backend, hidden, weight, targets, g, scale=0.125)
    # Products of bfloat16 are exact in float32, so the forward pass is as good as in float32.
    np.testing.assert_allclose(got[0], truth[0], atol=2e-5, rtol=2e-5)
    for gradient, want in zip(got[1:3], truth[1:3], strict=True):
        np.testing.assert_allclose(gradient, want, atol=0.02 * np.abs(want).max())


def _compiled(backend: str, tokens: int, vocabulary: int) -> Any:
    def loss(hidden: Any, weight: Any, targets: Any) -> Any:
        return aya_kernels.linear_logprob(hidden, weight, targets, backend=backend).sum()

    shapes = ((tokens, 16), (vocabulary, 16))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    targets = jax.ShapeDtypeStruct((tokens,), jnp.int32)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arrays, targets).compile()


def test_xla_never_makes_the_logits() -> None:
    tokens, vocabulary = 512, 65_536
    whole = tokens * vocabulary * 4
    names = [f"f32[{tokens},{vocabulary}]", f"f32[{vocabulary},{tokens}]"]
    lean, fat = (_compiled(backend, tokens, vocabulary) for backend in ("xla", "reference"))
    assert not any(name in lean.as_text() for name in names)
    assert lean.memory_analysis().temp_size_in_bytes < whole / 4
    # The same look at the reference finds them, so the look sees what it is for.
    assert any(name in fat.as_text() for name in names)
    assert fat.memory_analysis().temp_size_in_bytes >= whole


def test_unknown_backend_and_shapes() -> None:
    hidden, weight, targets = jnp.zeros((4, 8)), jnp.zeros((50, 8)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match="no backend 'pallas'"):
        aya_kernels.linear_logprob(hidden, weight, targets, backend="pallas")
    with pytest.raises(ValueError, match="do not fit"):
        aya_kernels.linear_logprob(hidden, weight[:, :7], targets)
    with pytest.raises(ValueError, match="mask"):
        aya_kernels.linear_logprob(hidden, weight, targets, mask=jnp.ones(5, bool))
