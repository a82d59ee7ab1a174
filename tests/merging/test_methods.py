"""Merge methods: mergekit's recorded outputs, the papers' formulas in float64, and what must hold of any method."""

import dataclasses
import importlib.util
import math
from functools import lru_cache
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from aya_jax.errors import AyaError
from aya_jax.merging.methods import (
    METHODS,
    Block,
    Settings,
    Tensor,
    differences,
    merge_tensor,
    ranks,
    require_settings,
)
from aya_jax.merging.methods.averages import running as running_average
from aya_jax.merging.methods.kinds import Held
from aya_jax.models.architecture import hf_tensors, read_config

GOLDENS = Path(__file__).with_name("goldens")
_SPEC = importlib.util.spec_from_file_location(
    "golden_models", Path(__file__).with_name("golden_models.py")
)
golden_models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden_models)
CASES, CONFIGS = golden_models.CASES, golden_models.CONFIGS
entries, uniform = golden_models.entries, golden_models.uniform
# What is given for each model, by its name here and in mergekit.
EACH = {"density": "density", "gamma": "gamma", "epsilon": "epsilon"}


@lru_cache
def golden(family):
    with np.load(GOLDENS / f"{family}.npz") as file:
        return dict(file)


def settings_of(method, models, shared, own):
    count = len(models)
    equal = (1.0 / count,) * count
    weights = (1 - shared["t"], shared["t"]) if "t" in shared else own.get("weight", equal)
    chosen = {name: own[key] for name, key in EACH.items() if key in own}
    if "lambda" in shared:
        chosen["scale"] = shared["lambda"]
    if "rescale" in shared:
        chosen["rescale"] = shared["rescale"]
    normalize = shared.get("normalize", METHODS[method].normalize)
    return Settings(weights, normalize=normalize, **chosen)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", CONFIGS)
def test_what_mergekit_makes_of_every_tensor(family, case, monkeypatch):
    method, models, base, shared, own = CASES[case]
    settings = settings_of(method, models, shared, own)

    def draws(seed, tensor, model, start, stop):
        # DELLA draws for a vector as for a matrix of one row.
        shape = (1, *tensor.shape)[-2:] if "della" in method else tensor.shape
        drawn = uniform(shape).reshape(tensor.shape)
        flat = (drawn.T if tensor.transpose else drawn).reshape(-1)
        return (flat[start:stop].astype(np.float64) * 2.0**32).astype(np.uint32)

    monkeypatch.setattr(differences, "draws", draws)
    tensors = hf_tensors(read_config(CONFIGS[family], family))
    expected = golden(family)
    assert len(tensors) == sum(name.startswith(f"{case}/") for name in expected)
    for tensor in tensors:
        of = [tensor.to_leaf(entries(m, tensor.name, tensor.shape)) for m in models]
        start = tensor.to_leaf(entries(base, tensor.name, tensor.shape)) if base else None
        told = Tensor(tensor.name, tensor.shape, tensor.transpose)
        start = start if METHODS[method].needs_base is not False else None
        merged = merge_tensor(method, settings, told, of, start)
        assert merged.dtype == jnp.float32 and merged.shape == tensor.part
        found = tensor.from_leaf(np.asarray(merged))
        wanted = expected[f"{case}/{tensor.name}"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6, err_msg=tensor.name)


# The papers' formulas, in float64.

RNG = np.random.default_rng(0)
SHAPE = (12, 30)
TENSOR = Tensor("t", SHAPE)
BASE = RNG.standard_normal(SHAPE).astype(np.float32)
MODELS = [(BASE + 0.2 * RNG.standard_normal(SHAPE)).astype(np.float32) for _ in range(4)]
WEIGHTS = (0.4, 0.3, 0.2, 0.1)


def settings(count=4, **changed):
    given = {"density": (0.4,) * count, "gamma": (0.05,) * count, "epsilon": (0.1,) * count}
    weights = changed.pop("weights", WEIGHTS if count == 4 else (1.0 / count,) * count)
    return Settings(weights, **{**given, **changed})


def merged(method, models=MODELS, base=BASE, tensor=TENSOR, seed=0, **changed):
    base = None if METHODS[method].needs_base is False else base
    chosen = settings(
        len(models), normalize=changed.pop("normalize", METHODS[method].normalize), **changed
    )
    return np.asarray(merge_tensor(method, chosen, tensor, models, base, seed=seed))


def deltas():
    return [model.astype(np.float64) - BASE for model in MODELS]


def test_linear_and_task_arithmetic():
    expected = sum(w * m.astype(np.float64) for w, m in zip(WEIGHTS, MODELS, strict=True))
    np.testing.assert_allclose(merged("linear"), expected, atol=1e-6)
    expected = BASE + 0.7 * sum(w * d for w, d in zip(WEIGHTS, deltas(), strict=True))
    np.testing.assert_allclose(merged("task_arithmetic", scale=0.7), expected, atol=1e-6)


def test_slerp_keeps_the_norm_on_a_great_circle():
    a, b = (model / np.linalg.norm(model) for model in MODELS[:2])
    for t in (0.1, 0.5, 0.8):
        point = merged("slerp", [a, b], weights=(1 - t, t)).astype(np.float64)
        angle = math.acos(float((a.astype(np.float64) * b).sum()))
        np.testing.assert_allclose(np.linalg.norm(point), 1, atol=1e-6)
        np.testing.assert_allclose((point * a).sum(), math.cos(t * angle), atol=1e-6)


def test_ties_trims_elects_and_averages_what_agrees():
    kept = []
    for delta in deltas():
        least = np.sort(np.abs(delta), axis=None)[::-1][int(0.4 * delta.size) - 1]
        kept.append(np.where(np.abs(delta) >= least, delta, 0.0))
    kept = np.stack(kept)
    sign = np.sign(kept.sum(0))
    agree = (np.sign(kept) == sign) & (kept != 0)
    mean = np.where(agree, kept, 0).sum(0) / np.maximum(agree.sum(0), 1)
    found = merged("ties", weights=(0.25,) * 4, scale=1.5)
    np.testing.assert_allclose(found, BASE + 1.5 * mean, atol=1e-6)


def test_breadcrumbs_leaves_out_the_largest_and_the_smallest():
    total = np.zeros(SHAPE)
    size = math.prod(SHAPE)
    for weight, delta in zip(WEIGHTS, deltas(), strict=True):
        order = np.argsort(-np.abs(delta), axis=None)
        stays = np.zeros(size, bool)
        first = int(0.05 * size)
        stays[order[first : first + int(0.4 * size)]] = True
        total += weight * np.where(stays.reshape(SHAPE), delta, 0)
    np.testing.assert_allclose(merged("breadcrumbs"), BASE + total, atol=1e-6)


def test_model_stock_is_the_papers_interpolation():
    d = deltas()
    pairs = [(i, j) for i in range(4) for j in range(i)]
    cosine = np.mean(
        [(d[i] * d[j]).sum() / np.linalg.norm(d[i]) / np.linalg.norm(d[j]) for i, j in pairs]
    )
    t = 4 * cosine / (1 + 3 * cosine)
    expected = t * np.mean(MODELS, 0, dtype=np.float64) + (1 - t) * BASE
    np.testing.assert_allclose(merged("model_stock"), expected, atol=1e-6)


def test_the_karcher_mean_of_two_is_slerp():
    a, b = MODELS[:2]
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    for t in (0.2, 0.5):
        ours = merged("karcher", [a, b], weights=(1 - t, t), max_iter=50, tol=1e-12)
        theirs = merged("slerp", [a, b], weights=(1 - t, t))
        np.testing.assert_allclose(ours, theirs, atol=2e-7)


def test_averages_of_checkpoints_are_running_ones():
    average = running_average(5)
    assert sum(average) == pytest.approx(1) and set(average) == {0.2}
    points, decay = RNG.standard_normal(6), 0.8
    running = points[0]
    for point in points[1:]:
        running = decay * running + (1 - decay) * point
    assert np.dot(running_average(6, decay), points) == pytest.approx(running)


# What is drawn.


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_what_is_drawn_keeps_the_mean(method):
    """Over many seeds the merged model is on average what it would be if all entries stayed."""
    tensor = Tensor("t", (4, 25))
    base, model = BASE[:, :25][:4], MODELS[0][:, :25][:4]
    runs = [
        merged(method, [model], base, tensor, seed, weights=(1.0,), density=(0.5,), epsilon=(0.2,))
        for seed in range(600)
    ]
    delta = model.astype(np.float64) - base
    # The variance of d / p with chance p is d^2 (1 - p) / p; the least chance is 0.3.
    error = np.abs(np.mean(runs, 0, dtype=np.float64) - model)
    assert (error < 5 * np.abs(delta) * math.sqrt(0.7 / 0.3 / 600) + 1e-6).all()
    # And each run keeps about half.
    share = np.mean([(run != base).mean() for run in runs])
    assert share == pytest.approx(0.5, abs=0.02)


def test_the_chances_of_della_rise_with_the_rank_in_a_row():
    chosen = settings(density=(0.5,) * 4, epsilon=(0.2,) * 4)
    for tensor in (Tensor("t", SHAPE), Tensor("t", SHAPE[::-1], transpose=True)):
        block = Block(tuple(model.reshape(-1) for model in MODELS), BASE.reshape(-1))
        chance = differences.chances(chosen, tensor, 1, block).reshape(SHAPE)
        magnitude = np.abs(MODELS[1] - BASE)
        if tensor.transpose:
            chance, magnitude = chance.T, magnitude.T
        assert chance.min() == pytest.approx(0.3) and chance.max() == pytest.approx(0.7)
        for row, size in zip(chance, magnitude, strict=True):
            assert (np.diff(row[np.argsort(size)]) > 0).all()


def test_draws_differ_by_seed_tensor_and_model_and_by_nothing_else():
    size = 3 * differences.DRAWN + 17
    whole = differences.draws(1, TENSOR, 0, 0, size)
    for start, stop in ((0, 5), (differences.DRAWN - 1, differences.DRAWN + 1), (70_000, size)):
        np.testing.assert_array_equal(
            differences.draws(1, TENSOR, 0, start, stop), whole[start:stop]
        )
    for other in ((2, TENSOR, 0), (1, Tensor("u", SHAPE), 0), (1, TENSOR, 1)):
        assert (differences.draws(*other, 0, size) == whole).mean() < 1e-3
    assert whole.mean() / 2**32 == pytest.approx(0.5, abs=0.01)


# Properties.


AWKWARD = [-0.0, 1e-30, 3.0, -1.5, 65504.0, 1e-7] + [0.1] * 6


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].models[0] == 1])
def test_one_model_is_itself(method, dtype):
    """All of it staying; to linear bit for bit, also where it has no numbers."""
    of = np.array([*AWKWARD, np.inf, np.nan] if method == "linear" else AWKWARD).astype(dtype)
    base = np.linspace(-2, 2, len(of)).astype(dtype)
    found = merged(method, [of], base, Tensor("t", of.shape), density=(1.0,)).astype(dtype)
    if method == "linear":
        assert found.tobytes() == of.tobytes()
    np.testing.assert_array_equal(found.astype(float), of.astype(float))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_equal_models_merge_to_themselves(method, dtype):
    count = METHODS[method].models[1] or 3
    # Differences from this base are rounded.
    model, base = MODELS[0].astype(dtype), (1000 * MODELS[1]).astype(dtype)
    for weights in ((1 / count,) * count, (0.7, 0.3, 0.0)[:count]):
        found = merged(method, [model] * count, base, density=(1.0,) * count, weights=weights)
        np.testing.assert_array_equal(found, model.astype(np.float32))


def test_the_order_of_models_does_not_matter_to_linear():
    models = [model * 10.0**i for i, model in enumerate(MODELS)]
    one = merged("linear", models)
    for order in ((3, 1, 0, 2), (1, 2, 3, 0)):
        other = merged(
            "linear", [models[i] for i in order], weights=tuple(WEIGHTS[i] for i in order)
        )
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
def test_the_ends_of_slerp_are_its_models(method):
    ends = [MODELS[0], np.where(MODELS[1] > 0, MODELS[1], -0.0).astype(np.float32)]
    for weights, end in (((1.0, 0.0), ends[0]), ((0.0, 1.0), ends[1])):
        assert merged(method, ends, None, weights=weights).tobytes() == end.tobytes()


def test_parallel_opposite_and_zero_tensors_are_interpolated_linearly():
    a, zero = MODELS[0], np.zeros(SHAPE, np.float32)
    for b in (2 * a, (1 + 1e-5) * a, -a, zero):
        found = merged("slerp", [a, b], weights=(0.75, 0.25))
        np.testing.assert_allclose(found, 0.75 * a + 0.25 * b, atol=1e-6)
    assert not merged("slerp", [zero, zero], weights=(0.5, 0.5)).any()
    for method in METHODS:
        count = METHODS[method].models[1] or 3
        assert np.isfinite(merged(method, [zero] * count, zero)).all()


def test_a_weight_of_zero_leaves_a_model_out_whatever_is_in_it():
    broken = np.full(SHAPE, np.nan, np.float32)
    found = merged("linear", [MODELS[0], broken], weights=(1.0, 0.0))
    np.testing.assert_array_equal(found, MODELS[0])


@pytest.mark.parametrize("method", METHODS)
def test_what_is_made_does_not_depend_on_the_cut(method, monkeypatch):
    """Whole, in rows and in pieces that fit nothing, with bfloat16's many equal differences."""
    for name, size in (("PIECE", 210), ("RUNS", 5), ("RUN", 10)):
        monkeypatch.setattr(ranks, name, size)
    how = METHODS[method]
    rows, columns = 40, 30
    rng = np.random.default_rng(3)
    base = rng.standard_normal((rows, columns)).astype(ml_dtypes.bfloat16)
    count = how.models[1] or 3
    models = [
        (base + 0.01 * rng.standard_normal(base.shape)).astype(ml_dtypes.bfloat16).reshape(-1)
        for _ in range(count)
    ]
    tensor = Tensor("t", (rows, columns))
    chosen = settings(count, normalize=how.normalize)
    flat = None if how.needs_base is False else base.reshape(-1)

    def by(size):
        held = Held(Block(tuple(models), flat), size)
        measured = how.measure(chosen, tensor, held) if how.measure else None
        parts = [how.apply(chosen, tensor, 5, measured, block) for block in held.whole()]
        return np.concatenate([np.asarray(part) for part in parts])

    whole = by(rows * columns)
    for size in (columns, 4 * columns) if how.by_row else (columns, 7, 131, 4 * columns):
        assert by(size).tobytes() == whole.tobytes(), size


@pytest.mark.parametrize(("runs", "run"), [(1, 1), (7, 3), (50, 10), (256, 512)])
def test_the_magnitude_of_a_rank_is_the_one_of_a_sort(runs, run, monkeypatch):
    """However little or misleading the sample is."""
    for name, size in (("PIECE", 64), ("RUNS", runs), ("RUN", run)):
        monkeypatch.setattr(ranks, name, size)
    rng = np.random.default_rng(1)
    size = 1000
    # All that the sample sees is one value, which no other entry has.
    unlike = np.linspace(0, 1, size)
    for start, stop in ranks._runs(size):
        unlike[start:stop] = 2
    for values in (
        unlike,
        rng.standard_normal(size),
        rng.standard_normal(size) * np.repeat([1e-6, 1.0, 1e6, 1e-3], size // 4),
        rng.integers(-3, 4, size),
        np.zeros(size),
        np.r_[np.zeros(900), np.full(100, 2.0)],
        np.r_[np.full(500, np.inf), np.arange(500)],
    ):
        model = values.astype(np.float32)
        entries = Held(Block((model, -2 * model), np.zeros(size, np.float32)), 300)
        wanted = [1, 2, 137, 500, 501, 999, 1000]
        found = ranks.magnitudes(size, [wanted, wanted[2:4]], entries)
        for factor, each in ((1, found[0]), (2, found[1])):
            order = np.sort(np.abs(np.float32(factor) * model))[::-1]
            at = wanted if factor == 1 else wanted[2:4]
            expected = [int(order[rank - 1].view(np.uint32)) for rank in at]
            assert each == expected


def test_entries_of_equal_size_stay_together():
    """As in the code of the TIES paper, which keeps what is not below the magnitude of the rank."""
    base = np.zeros(SHAPE, np.float32)
    steps = np.where(np.arange(base.size).reshape(SHAPE) % 3, 1.0, -2.0).astype(np.float32)
    found = merged("ties", [steps], base, weights=(1.0,), density=(0.5,))
    np.testing.assert_array_equal(found, steps)
    found = merged("ties", [steps], base, weights=(1.0,), density=(0.3,))
    np.testing.assert_array_equal(found, np.where(steps == -2.0, steps, 0.0))


# What is refused.


@pytest.mark.parametrize(
    ("method", "changed", "told"),
    [
        ("linear", {"weights": (0.5, 0.4)}, "sum to 0.9; they must sum to 1"),
        ("slerp", {"weights": (0.5, 0.4)}, "must sum to 1"),
        ("slerp", {"weights": (0.5, 0.3, 0.2)}, "takes 2 models, not 3"),
        ("model_stock", {"weights": (1.0,)}, "at least 2 models, not 1"),
        ("ties", {"density": (0.0, 0.5)}, "density 0 must be above 0"),
        ("breadcrumbs", {"gamma": (1.0, 0.5)}, "gamma 1 must be"),
        ("della", {"density": (0.5, 0.95), "epsilon": (0.1, 0.1)}, "epsilon 0.1 must leave"),
        ("linear", {"weights": (math.nan, 1.0)}, "finite"),
    ],
)
def test_settings_that_fit_no_method(method, changed, told):
    count = len(changed.get("weights", (0.5, 0.5)))
    with pytest.raises(AyaError, match=told):
        require_settings(method, settings(count, **changed), base=True)


def test_a_base_that_is_missing_and_a_method_that_is_not_there():
    with pytest.raises(AyaError, match="'ties' needs a base model"):
        require_settings("ties", settings(), base=False)
    with pytest.raises(AyaError, match="did you mean 'ties'"):
        require_settings("tise", settings(), base=True)
    asked = dataclasses.replace(settings(2), weights=(1.0, 3.0), normalize=True)
    require_settings("linear", asked, base=False)
