"""A training that is broken off and goes on is the unbroken one, and what is wrong is told."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.data.loader import Loader
from aya_jax.errors import AyaError
from aya_jax.sharding.mesh import device_mesh, logical_rules
from aya_jax.training.health import FINITE
from aya_jax.training.incidents import Incidents
from aya_jax.training.loop import train
from aya_jax.training.objectives import DPO, SFT
from aya_jax.training.optimizer import AdamW, learning_rate_at
from aya_jax.training.step import train_program

STEPS = 7
SETTINGS = {
    "incidents": Incidents(Path("none")),
    "steps": STEPS,
    "batch_size": 4,
    "learning_rate": 0.02,
    "schedule": "cosine",
    "warmup": 0.3,
    "final_learning_rate": 0.1,
    "optimizer": AdamW(weight_decay=0.1),
    "seed": 3,
    "log_every": 1,
    "checkpoint_every": 2,
}


class Killed(Exception):
    """Nothing in the loop catches this."""


class Watch:
    """Keeps the figures of every step; ends the process, as it were, after `last`."""

    def __init__(self, last=None):
        self.figures = {}
        self.last = last

    def __call__(self, step, figures):
        self.figures[step] = dict(figures)
        if step == self.last:
            raise Killed


@pytest.fixture(scope="module")
def arrays(sft_arrays):
    return sft_arrays(10)


def bits(store, state):
    step, restored = store.restore(None, state)
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    return step, {jax.tree_util.keystr(p): np.asarray(x).tobytes() for p, x in leaves}


@pytest.fixture(scope="module")
def like(config, params):
    program = program_of(config)
    return program.init(jax.tree.map(jnp.array, params))


def program_of(config):
    return train_program(
        SFT(config), AdamW(weight_decay=0.1), device_mesh(), logical_rules(), 1, None, FINITE
    )


@pytest.fixture(scope="module")
def unbroken(config, params, arrays, like, tmp_path_factory):
    store = TrainStore(tmp_path_factory.mktemp("unbroken"))
    watch = Watch()
    start = jax.tree.map(jnp.array, params)
    assert train(SFT(config), start, arrays, store=store, observe=watch, **SETTINGS) == STEPS
    # The parameters that were given do not stay beside the state.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    assert sorted(watch.figures) == list(range(1, STEPS + 1))
    return bits(store, like), watch.figures


@pytest.mark.parametrize("last", [1, 2, 3, 6, 7])
def test_what_was_broken_off_ends_in_the_same_bits(
    config, params, arrays, like, unbroken, tmp_path, last
):
    store, first, second = TrainStore(tmp_path), Watch(last), Watch()
    with pytest.raises(Killed):
        train(SFT(config), params, arrays, store=store, observe=first, **SETTINGS)
    assert store.latest_step() == ((last - 1) // 2 * 2 or None)
    train(SFT(config), params, arrays, store=store, observe=second, **SETTINGS)
    assert bits(store, like) == unbroken[0]
    # Every figure too, and none of the steps before the checkpoint is taken again.
    assert min(second.figures) == (last - 1) // 2 * 2 + 1
    assert {**first.figures, **second.figures} == unbroken[1]
    # What was restored runs in the program that was compiled for the first attempt.
    assert program_of(config).step._cache_size() == 1


def test_broken_off_again_and_again(config, params, arrays, like, unbroken, tmp_path):
    store = TrainStore(tmp_path)
    for last in (2, 4, 5, 6):
        with pytest.raises(Killed):
            train(SFT(config), params, arrays, store=store, observe=Watch(last), **SETTINGS)
    train(SFT(config), params, arrays, store=store, **SETTINGS)
    assert bits(store, like) == unbroken[0]


def test_a_finished_training_is_left_as_it_is(config, params, arrays, like, tmp_path):
    store, watch = TrainStore(tmp_path), Watch()
    train(SFT(config), params, arrays, store=store, **SETTINGS)
    before = bits(store, like)
    assert train(SFT(config), params, arrays, store=store, observe=watch, **SETTINGS) == STEPS
    assert not watch.figures and bits(store, like) == before


def test_how_often_it_is_told_and_kept_changes_no_bit(
    config, params, arrays, like, unbroken, tmp_path
):
    store, watch = TrainStore(tmp_path, keep=1), Watch()
    settings = {**SETTINGS, "log_every": 3, "checkpoint_every": 100}
    train(SFT(config), params, arrays, store=store, observe=watch, **settings)
    assert bits(store, like) == unbroken[0]
    assert sorted(watch.figures) == [3, 6, 7] and store.steps() == [7]
    assert all(watch.figures[step] == unbroken[1][step] for step in watch.figures)


def test_the_seed_and_the_learning_rate_matter(config, params, arrays, like, unbroken, tmp_path):
    for name, value in (("seed", 4), ("learning_rate", 0.03)):
        store = TrainStore(tmp_path / name)
        train(SFT(config), params, arrays, store=store, **{**SETTINGS, name: value})
        assert bits(store, like) != unbroken[0]


def test_figures_are_those_of_the_step(unbroken):
    for step, figures in unbroken[1].items():
        expected = learning_rate_at(
            step - 1, peak=0.02, steps=STEPS, warmup=0.3, schedule="cosine", final=0.1
        )
        assert figures["learning_rate"] == expected
        assert (figures["total"], figures["batch_size"]) == (STEPS, 4)
    losses = [unbroken[1][step]["loss"] for step in sorted(unbroken[1])]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("epochs", "expected"), [(1.0, 3), (2.0, 5), (0.1, 1)])
def test_epochs_are_passes_over_the_rows(config, params, arrays, tmp_path, epochs, expected):
    settings = {**SETTINGS, "steps": None, "epochs": epochs}
    store = TrainStore(tmp_path)
    assert train(SFT(config), params, arrays, store=store, **settings) == expected
    assert store.latest_step() == expected


def test_half_precision_is_trained_in_float32_and_compiled_once(
    config, params, arrays, like, tmp_path
):
    half = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), params)
    whole = jax.tree.map(lambda p: p.astype(jnp.float32), half)
    store = TrainStore(tmp_path)
    train(SFT(config), half, arrays, store=store, **SETTINGS)
    kept = store.load_params(STEPS)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept)} == {"float32"}
    other = TrainStore(tmp_path / "whole")
    train(SFT(config), whole, arrays, store=other, **SETTINGS)
    assert bits(store, like) == bits(other, like)
    assert program_of(config).step._cache_size() == 1


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_loss_that_is_no_number_is_told_with_its_step(
    config, params, pair_arrays, tmp_path, poison
):
    arrays = pair_arrays(12)
    arrays["reference_chosen"][5] = poison
    loader = Loader({"row": np.arange(12)}, batch_size=2, seed=0)
    first = 1 + next(step for step in range(6) if 5 in loader[step]["row"])
    assert first > 1  # else there is no step before it to keep
    settings = {**SETTINGS, "batch_size": 2, "seed": 0, "steps": 8, "checkpoint_every": 1}
    incidents = Incidents(tmp_path / "incidents")
    # Told in the same words where figures are shown seldom, and no such state is kept.
    for log_every in (1, 100):
        store = TrainStore(tmp_path / str(log_every))
        with pytest.raises(AyaError, match=rf"train: the loss is \S+ .* at step {first}; lower"):
            train(
                DPO(config, beta=0.1),
                params,
                arrays,
                store=store,
                **{**settings, "log_every": log_every, "incidents": incidents},
            )
        assert store.latest_step() == first - 1
        with np.load(tmp_path / "incidents" / f"step_{first:08d}.npz") as batch:
            assert 5 in batch["rows"]
            for name, rows in arrays.items():
                np.testing.assert_array_equal(batch[name], rows[batch["rows"]])


@pytest.mark.parametrize(("batch_size", "accumulate"), [(0, 1), (-4, 1), (6, 4), (2, 4)])
def test_a_batch_that_does_not_divide_is_told(
    config, params, arrays, tmp_path, batch_size, accumulate
):
    settings = {**SETTINGS, "batch_size": batch_size, "accumulate": accumulate}
    with pytest.raises(AyaError, match=f"train.batch_size {batch_size} must be .*{accumulate} "):
        train(SFT(config), params, arrays, store=TrainStore(tmp_path), **settings)
