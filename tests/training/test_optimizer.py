import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aya_jax.errors import AyaError
from aya_jax.training.optimizer import (
    SCHEDULES,
    Adafactor,
    AdamW,
    learning_rate_at,
    optimizer,
)

SHAPES = {
    "embedding": (7, 4),
    "final_norm": {"weight": (4,)},
    "layers": {
        "block": {
            "input_norm": {"weight": (2, 4)},
            "q_norm": {"weight": (2, 3, 2)},
            "q": (2, 4, 3, 2),
            "up": (2, 4, 5),
        }
    },
    "score": (4,),
}


def draw(rng, scale):
    return jax.tree.map(
        lambda shape: rng.normal(0, scale, shape).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def named(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def numpy_adamw(params, grads_of_steps, rate, *, b1, b2, weight_decay, clip_norm):
    """Loshchilov and Hutter (arXiv 1711.05101), algorithm 2, after clipping by the global norm."""
    params = named(params)
    m = {name: np.zeros_like(x) for name, x in params.items()}
    v = {name: np.zeros_like(x) for name, x in params.items()}
    for t, grads in enumerate(grads_of_steps, start=1):
        grads = named(grads)
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, g in grads.items():
            g = g * min(1.0, clip_norm / norm)
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            step = (m[name] / (1 - b1**t)) / (np.sqrt(v[name] / (1 - b2**t)) + 1e-8)
            decay = 0.0 if "norm" in name else weight_decay
            params[name] = params[name] - rate * (step + decay * params[name])
    return params


@pytest.mark.parametrize(
    "settings_of_test",
    [
        {"b1": 0.9, "b2": 0.95, "weight_decay": 0.0, "clip_norm": 1.0},
        {"b1": 0.8, "b2": 0.999, "weight_decay": 0.3, "clip_norm": 5.0},
        {"b1": 0.9, "b2": 0.95, "weight_decay": 0.1, "clip_norm": 1e6},
    ],
)
def test_six_steps_are_those_of_numpy(settings_of_test):
    rng = np.random.default_rng(0)
    params = draw(rng, 1.0)
    # The norms of the gradients lie on both sides of 1.0 and of 5.0.
    grads = [draw(rng, scale) for scale in (0.02, 1.0, 0.3, 0.01, 3.0, 0.1)]
    transform = AdamW(**settings_of_test).transform()

    @jax.jit
    def step(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return jax.tree.map(lambda p, u: p - 0.05 * u, params, updates), state

    ours, state = params, transform.init(params)
    for each in grads:
        ours, state = step(ours, state, each)
    expected = numpy_adamw(params, grads, 0.05, **settings_of_test)
    for name, value in named(ours).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=2e-6, err_msg=name)


def test_norms_are_not_decayed_and_all_else_is():
    params = draw(np.random.default_rng(1), 1.0)
    transform = AdamW(weight_decay=0.5).transform()
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(nothing, transform.init(params), params)
    before = named(params)
    for name, update in named(updates).items():
        expected = 0.0 if "norm" in name else 0.5 * before[name]
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=name)


def formula(step, peak, steps, rise, schedule, final):
    if step < rise:
        return peak * (step + 1) / rise
    share = (step - rise) / (steps - rise)
    return {
        "cosine": final * peak + (peak - final * peak) * (1 + math.cos(math.pi * share)) / 2,
        "linear": peak + (final * peak - peak) * share,
        "constant": peak,
    }[schedule]


@given(
    steps=st.integers(1, 300),
    warmup=st.sampled_from([0.0, 0.05, 0.25, 0.5, 1.0]),
    schedule=st.sampled_from(SCHEDULES),
    final=st.sampled_from([0.0, 0.1, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_schedules_are_their_formulas(steps, warmup, schedule, final):
    rise = math.ceil(warmup * steps)
    rates = [
        learning_rate_at(s, peak=2e-3, steps=steps, warmup=warmup, schedule=schedule, final=final)
        for s in range(steps)
    ]
    expected = [formula(s, 2e-3, steps, rise, schedule, final) for s in range(steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-18)
    # Up to the peak and never above it, then down and never up again.
    assert max(rates) == pytest.approx(2e-3) and min(rates) > 0
    assert rates[:rise] == sorted(rates[:rise])
    assert rates[rise:] == sorted(rates[rise:], reverse=True)


def test_an_unknown_schedule_is_told_with_the_nearest():
    with pytest.raises(AyaError, match=r"train.schedule.*'cosin'.*did you mean 'cosine'"):
        learning_rate_at(0, peak=1.0, steps=2, warmup=0.0, schedule="cosin", final=0.0)


def test_moments_in_bfloat16_change_the_update_by_their_rounding():
    rng = np.random.default_rng(2)
    params, grads = draw(rng, 1.0), [draw(rng, 1.0) for _ in range(5)]
    updates = {}
    for dtype in ("float32", "bfloat16"):
        transform = AdamW(moment_dtype=dtype).transform()
        state = transform.init(params)
        for each in grads:
            found, state = transform.update(each, state, params)
        moments = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype.name for x in moments} == {dtype}
        updates[dtype] = named(found)
    for name, exact in updates["float32"].items():
        rounded = updates["bfloat16"][name]
        assert not np.array_equal(rounded, exact)
        np.testing.assert_allclose(rounded, exact, rtol=0.05, atol=0.02, err_msg=name)


def test_adafactor_is_its_algorithm_and_keeps_rows_and_columns():
    """Shazeer and Stern (arXiv 1804.04235), algorithm 4, in NumPy."""
    rng = np.random.default_rng(3)
    params = {"matrix": rng.normal(size=(130, 200)).astype(np.float32)}
    transform = Adafactor(clip_norm=1e9).transform()
    state = transform.init(params)
    assert sum(x.size for x in jax.tree.leaves(state)) < 130 + 200 + 10
    rows, columns = np.zeros(130), np.zeros(200)
    for t in range(1, 5):
        g = (10.0 ** (t - 3) * rng.normal(size=(130, 200))).astype(np.float32)
        found, state = transform.update({"matrix": jnp.asarray(g)}, state, params)
        decay, squares = 1 - t**-0.8, g.astype(np.float64) ** 2 + 1e-30
        rows = decay * rows + (1 - decay) * squares.mean(1)
        columns = decay * columns + (1 - decay) * squares.mean(0)
        update = g / np.sqrt(np.outer(rows, columns) / rows.mean())
        update /= max(1.0, np.sqrt((update**2).mean()))
        np.testing.assert_allclose(found["matrix"], update, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "adamv"}, "optimizer.name: unknown 'adamv'; did you mean 'adamw'?"),
        ({"moment_dtype": "float16"}, "optimizer.moment_dtype: unknown dtype 'float16'; did you"),
    ],
)
def test_an_unknown_optimizer_is_told(given, told):
    with pytest.raises(AyaError, match=re.escape(told)):
        optimizer(**given)
