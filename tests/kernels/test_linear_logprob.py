"""Every backend of linear_logprob against the definition in NumPy float64, and its memory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aya_kernels
from aya_kernels.linear_logprob import chunks, mosaic_tpu, tokens, triton, xla
from aya_kernels.linear_logprob.inputs import Inputs, Options

BACKENDS = ["reference", "xla", "mosaic_tpu", "triton"]
# Those that never make the logits.
STREAMED = {"xla": xla.forward, "mosaic_tpu": mosaic_tpu.forward, "triton": triton.forward}
# More than one chunk of columns, and no multiple of any.
MANY = 10_001


class Case(NamedTuple):
    """Sizes and options of a call; where `moved`, no problem is too small to leave masked tokens out."""

    t: int
    v: int
    d: int = 8
    scale: float = 1.0
    softcap: float | None = None
    masked: float = 0.0
    moved: bool = False


CASES = {
    "small vocabulary": Case(33, 50),
    "one word": Case(5, 1),
    "one token": Case(1, 50),
    "many chunks": Case(33, MANY),
    "whole chunks": Case(9, 8192),
    "scale": Case(9, MANY, scale=0.125),
    "softcap": Case(9, 50, softcap=2.0),
    "softcap, scale, many chunks": Case(9, MANY, softcap=2.0, scale=0.7),
    "mask": Case(33, 50, masked=0.5),
    "mask, many chunks": Case(33, MANY, masked=0.5),
    "masked tokens last": Case(33, 50, softcap=2.0, scale=0.7, masked=0.5, moved=True),
    "most tokens masked": Case(33, MANY, masked=0.9, moved=True),
    "all tokens masked": Case(33, 50, masked=1.0),
    "all tokens masked, and moved": Case(33, 50, masked=1.0, moved=True),
    "no token masked, and moved": Case(33, 50, masked=1e-9, moved=True),
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
    """Return log p(target), log-sum-exp and entropy [3, T], and what `g` [3, T] makes of the gradients.

    In float64: the gradients to hidden, weight and scale, and last the arg-max.
    """
    hidden, weight, g = (np.asarray(x, np.float64) for x in (hidden, weight, g))
    keep = np.ones(len(targets)) if mask is None else mask.astype(np.float64)
    products = hidden @ weight.T
    scores, slope = scale * products, np.ones_like(products)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
        slope = 1 - (scores / softcap) ** 2
    top = scores.max(-1, keepdims=True)
    lse = top + np.log(np.exp(scores - top).sum(-1, keepdims=True))
    logs = scores - lse
    p = np.exp(logs)
    entropy = -(p * logs).sum(-1, keepdims=True)
    hit = np.arange(len(weight)) == np.where(keep > 0, targets, 0)[:, None]
    found = np.stack([logs[hit], lse[:, 0], entropy[:, 0]]) * keep
    g_logp, g_lse, g_entropy = (g * keep)[:, :, None]
    d_scores = (g_logp * (hit - p) + g_lse * p - g_entropy * p * (logs + entropy)) * slope
    return (
        found,
        scale * d_scores @ weight,
        scale * d_scores.T @ hidden,
        (d_scores * products).sum(),
        np.where(keep > 0, scores.argmax(-1), 0),
    )


def run(
    backend: str, hidden: Any, weight: Any, targets: Any, g: Any, scale: float = 1.0, **options: Any
) -> tuple[np.ndarray, ...]:
    """Return what `definition` does, by a backend, the scale traced."""

    @jax.jit
    def both(hidden: Any, weight: Any, scale: Any, targets: Any, g: Any) -> Any:
        def call(hidden: Any, weight: Any, scale: Any) -> Any:
            out = aya_kernels.linear_statistics(
                hidden,
                weight,
                targets,
                scale=scale,
                backend=backend,
                entropy=True,
                argmax=True,
                **options,
            )
            assert {out.logp.dtype, out.lse.dtype, out.entropy.dtype} == {jnp.dtype(jnp.float32)}
            return jnp.stack([out.logp, out.lse, out.entropy]), out.argmax

        out, pull, best = jax.vjp(call, hidden, weight, scale, has_aux=True)
        return out, *pull(g), best

    return tuple(np.asarray(x, np.float64) for x in both(hidden, weight, scale, targets, g))


def move_all(patch: Callable[..., None]) -> None:
    """Leave masked tokens out of problems of any size, in blocks of a few."""
    patch(tokens, "SMALL", 0)
    patch(chunks, "SHORT_BLOCK", 4)
    patch(chunks, "LONG_BLOCK", 8)


@pytest.fixture(scope="module", params=CASES)
def known(request: pytest.FixtureRequest) -> Any:
    """A case with its truth, worked out once for all backends."""
    case = CASES[request.param]
    rng = np.random.default_rng(0)
    hidden, weight = (rng.normal(size=(n, case.d)).astype(np.float32) for n in (case.t, case.v))
    targets = rng.integers(0, case.v, case.t).astype(np.int32)
    targets[-1] = case.v - 1
    g = rng.normal(size=(3, case.t)).astype(np.float32)
    options: dict[str, Any] = {"scale": case.scale, "softcap": case.softcap}
    if case.masked:
        options["mask"] = rng.random(case.t) >= case.masked
        # The targets of masked tokens may be anything, such as the usual -100.
        targets = np.where(options["mask"], targets, -100).astype(np.int32)
    arrays = (hidden, weight, targets, g)
    return case, arrays, options, definition(*arrays, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_definition(known: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, arrays, options, (want, *want_gradients, want_best) = known
    if case.moved:
        move_all(monkeypatch.setattr)
    got, *gradients, best = run(backend, *arrays, **options)
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)
    for gradient, truth in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(gradient, truth, atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(best, want_best)
    if case.masked:
        assert (got[:, ~options["mask"]] == 0).all() and (gradients[0][~options["mask"]] == 0).all()


@pytest.mark.parametrize("backend", STREAMED)
def test_masked_tokens_are_not_computed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks that hold no token that counts are left as they were, whatever that was.
    monkeypatch.setattr(mosaic_tpu, "BLOCKS", (128,))
    monkeypatch.setattr(chunks, "SHORT_BLOCK", 128)
    monkeypatch.setattr(chunks, "LONG_BLOCK", 256)
    rng = np.random.default_rng(3)
    hidden, weight = (rng.normal(size=(n, 8)).astype(np.float32) for n in (512, 50))
    targets = rng.integers(0, 50, 512).astype(np.int32)
    o, x = Options(None, False, False, ()), Inputs(hidden, weight, targets, jnp.float32(1.0))
    forward = jax.jit(STREAMED[backend], static_argnums=0)
    whole = np.asarray(forward(o, x).picked)
    for count, computed in ((100, 128), (128, 128), (300, 384), (500, 512)):
        some = np.asarray(forward(o, x._replace(count=jnp.int32(count))).picked)
        np.testing.assert_allclose(some[:computed], whole[:computed], rtol=1e-6)
        assert (some[computed:] != whole[computed:]).all()


def test_the_gradient_leaves_masked_tokens_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not a number times a gradient of zero is none either: these tokens were never touched.
    move_all(monkeypatch.setattr)
    monkeypatch.setattr(chunks, "SHORT_BLOCK", 1)
    rng = np.random.default_rng(3)
    hidden, weight = (rng.normal(size=(n, 8)).astype(np.float32) for n in (33, 50))
    mask = rng.random(33) < 0.4
    targets = np.where(mask, 7, -100).astype(np.int32)
    g = rng.normal(size=(3, 33)).astype(np.float32)
    got = run("xla", np.where(mask[:, None], hidden, np.nan), weight, targets, g, mask=mask)
    want = definition(hidden, weight, targets, g, mask=mask)
    for part in (0, 1, 2, 4):  # The gradient to the scale goes over all of hidden.
        np.testing.assert_allclose(got[part], want[part], atol=1e-4, rtol=1e-4)


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
    g = rng.normal(size=(3, 9)).astype(np.float32)
    truth = definition(hidden, weight, targets, g)
    assert truth[0][0, 0] == -19_600 and truth[0][1, 0] == 9_800
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
def test_the_first_of_equals_is_the_arg_max(backend: str) -> None:
    weight = np.zeros((MANY, 8), np.float32)
    weight[[5000, 9000, 10_000]] = 1.0
    hidden = np.stack([np.ones(8), np.zeros(8), -np.ones(8)]).astype(np.float32)
    call = jax.jit(partial(aya_kernels.linear_statistics, argmax=True, backend=backend))
    out = call(hidden, weight, np.zeros(3, np.int32))
    np.testing.assert_array_equal(out.argmax, [5000, 0, 0])
    assert out.entropy is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_tokens_permutes_results(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    move_all(monkeypatch.setattr)
    call = jax.jit(
        partial(aya_kernels.linear_statistics, entropy=True, argmax=True, backend=backend)
    )

    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    def check(seed: int, share: float) -> None:
        rng = np.random.default_rng(seed)
        hidden, weight = (rng.normal(size=(n, 8)).astype(np.float32) for n in (33, 50))
        targets = rng.integers(0, 50, 33).astype(np.int32)
        mask, order = rng.random(33) < share, rng.permutation(33)
        out = call(hidden, weight, targets, mask=mask)
        mixed = call(hidden[order], weight, targets[order], mask=mask[order])
        for one, other in zip(out, mixed, strict=True):
            np.testing.assert_allclose(np.asarray(one)[order], other, atol=2e-6, rtol=2e-6)

    check()


@pytest.mark.parametrize("forward", [f.forward for f in (xla, mosaic_tpu, triton)])
def test_a_target_of_another_device_is_none_of_ours(forward: Callable[..., Any]) -> None:
    hidden, weight = jnp.ones((6, 8)), jnp.ones((50, 8))
    targets = jnp.array([-50, -1, 0, 49, 50, 70], jnp.int32)
    sums = forward(Options(None, False, False, ()), Inputs(hidden, weight, targets, jnp.float32(1)))
    np.testing.assert_allclose(sums.picked, [0, 0, 8, 8, 0, 0])


@pytest.mark.parametrize("backend", STREAMED)
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_of_the_vocabulary_make_the_whole(backend: str, parts: int) -> None:
    call = partial(aya_kernels.linear_statistics, entropy=True, argmax=True, backend=backend)
    split = jax.jit(
        jax.vmap(partial(call, axis_name="parts"), in_axes=(None, 0, None), axis_name="parts")
    )
    whole = jax.jit(call)

    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 999), spread=st.sampled_from([0.1, 1.0, 100.0]))
    def check(seed: int, spread: float) -> None:
        rng = np.random.default_rng(seed)
        hidden, weight = (rng.normal(size=(n, 8)).astype(np.float32) for n in (9, 50))
        targets = rng.integers(0, 50, 9).astype(np.int32)
        out = whole(hidden * spread, weight, targets)
        for device in range(parts):
            some = jax.tree.map(
                lambda a, device=device: a[device],
                split(hidden * spread, weight.reshape(parts, -1, 8), targets),
            )
            for one, other in zip(out, some, strict=True):
                np.testing.assert_allclose(other, one, atol=2e-5, rtol=2e-5)

    check()


@pytest.mark.slow
def test_a_vocabulary_over_devices_is_the_vocabulary_on_one() -> None:
    ways = [("xla", "checked"), ("xla", "placement"), ("mosaic_tpu", "unchecked")]
    ways += [("xla", "columns"), ("mosaic_tpu", "columns")]
    flags = "--xla_force_host_platform_device_count=8"
    out = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("spread_vocabulary.py")), json.dumps(ways)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    assert max(json.loads(out.stdout)) < 1e-5


def materialised(hidden: Any, weight: Any, targets: Any, g: Any, scale: float) -> Any:
    """What XLA makes of the formula in the dtype of its inputs, the logits rounded to it too."""

    def logprob(hidden: Any, weight: Any) -> Any:
        scores = jnp.einsum("td,vd->tv", hidden, weight) * hidden.dtype.type(scale)
        logprobs = jax.nn.log_softmax(scores.astype(jnp.float32))
        return jnp.take_along_axis(logprobs, targets[:, None], axis=1)[:, 0]

    out, pull = jax.vjp(logprob, hidden, weight)
    return out, *pull(g)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocabulary", [50, MANY])
def test_bfloat16(backend: str, vocabulary: int) -> None:
    rng = np.random.default_rng(4)
    hidden = rng.normal(size=(33, 64)).astype(jnp.bfloat16)
    weight = rng.normal(size=(vocabulary, 64)).astype(jnp.bfloat16)
    targets = rng.integers(0, vocabulary, 33).astype(np.int32)
    g = np.zeros((3, 33), np.float32)
    g[0] = rng.normal(size=33)
    truth = definition(hidden, weight, targets, g, scale=0.125)
    got = run(backend, hidden, weight, targets, g, scale=0.125)
    # Products of bfloat16 are exact in float32, so the forward pass is as good as in float32.
    np.testing.assert_allclose(got[0], truth[0], atol=2e-5, rtol=2e-5)
    whole = jax.jit(materialised, static_argnums=4)(hidden, weight, targets, g[0], 0.125)
    for gradient, other, want in zip(got[1:3], whole[1:], truth[1:3], strict=True):
        other = np.asarray(other, np.float64)
        for error in (np.max, np.linalg.norm):
            assert error(np.abs(gradient - want)) <= 1.2 * error(np.abs(other - want))


def _compiled(backend: str, tokens: int, vocabulary: int, masked: bool) -> Any:
    def loss(hidden: Any, weight: Any, targets: Any, mask: Any) -> Any:
        options = {"mask": mask} if masked else {}
        out = aya_kernels.linear_logprob(hidden, weight, targets, backend=backend, **options)
        return out.sum()

    shapes = ((tokens, 16), (vocabulary, 16))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    arrays += [jax.ShapeDtypeStruct((tokens,), dtype) for dtype in (jnp.int32, jnp.bool_)]
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arrays).compile()


@pytest.mark.parametrize("masked", [False, True])
def test_the_logits_are_never_made(masked: bool) -> None:
    tokens, vocabulary = 2048, 262_144
    whole = tokens * vocabulary * 4
    names = [f"f32[{tokens},{vocabulary}]", f"f32[{vocabulary},{tokens}]"]
    lean = _compiled("xla", tokens, vocabulary, masked)
    assert not any(name in lean.as_text() for name in names)
    assert lean.memory_analysis().temp_size_in_bytes < whole / 10


def test_the_reference_makes_the_logits() -> None:
    # The same look at the reference finds them, so the look above sees what it is for.
    fat = _compiled("reference", 512, 65_536, False)
    assert "f32[512,65536]" in fat.as_text()
    assert fat.memory_analysis().temp_size_in_bytes >= 512 * 65_536 * 4


def test_which_backend_and_why_not_another() -> None:
    hidden, weight = (jax.ShapeDtypeStruct((n, 8), jnp.float16) for n in (4, 50))
    targets = jax.ShapeDtypeStruct((4,), jnp.int32)
    told = aya_kernels.explain("linear_logprob", hidden, weight, targets, axis_name="tensor")
    assert told.chosen == "xla"
    assert "whole weight" in told.others["reference"]
    assert "bfloat16 or float32" in told.others["mosaic_tpu"]
    with aya_kernels.target("cuda", "NVIDIA H100 80GB HBM3", 9.0):
        told = aya_kernels.explain("linear_logprob", hidden, weight, targets)
    assert "written for tpu" in told.others["mosaic_tpu"]


def test_what_does_not_fit() -> None:
    hidden, weight, targets = jnp.zeros((4, 8)), jnp.zeros((50, 8)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match="no backend 'pallas'"):
        aya_kernels.linear_logprob(hidden, weight, targets, backend="pallas")
    with pytest.raises(ValueError, match="cannot run: hidden and weight"):
        aya_kernels.linear_logprob(
            hidden.astype(jnp.bfloat16), weight, targets, backend="mosaic_tpu"
        )
    with pytest.raises(ValueError, match="do not fit"):
        aya_kernels.linear_logprob(hidden, weight[:, :7], targets)
    with pytest.raises(ValueError, match="mask"):
        aya_kernels.linear_logprob(hidden, weight, targets, mask=jnp.ones(5, bool))
