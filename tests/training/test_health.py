"""Bad steps are told as plain arithmetic tells them, change nothing, and are told the same after a resume."""

import json
import math
import statistics
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.data.loader import Loader
from aya_jax.errors import AyaError
from aya_jax.sharding.mesh import device_mesh, logical_rules
from aya_jax.training.health import ENOUGH, WINDOW, Guard, health
from aya_jax.training.incidents import Incidents
from aya_jax.training.loop import train
from aya_jax.training.objectives import DPO
from aya_jax.training.optimizer import AdamW
from aya_jax.training.step import train_program

STEPS = 60
SPIKE = 0.7


@pytest.fixture(autouse=True)
def _plain_gin():
    gin.clear_config()
    yield
    gin.clear_config()


def told_plainly(losses, norms, spike):
    """The definition in Python's own words, one step after the other."""
    out = []
    for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        bad = not (math.isfinite(loss) and math.isfinite(norm))
        last = [x for x in losses[max(0, i - WINDOW) : i] if math.isfinite(x)]
        if spike is not None and len(last) >= ENOUGH and not bad:
            median = statistics.median(last)
            spread = 1.4826 * statistics.median(abs(x - median) for x in last)
            bad = loss > median + spike * max(spread, 0.01 * abs(median))
        out.append(bad)
    return out


@pytest.mark.parametrize("spike", [None, 1.0, 6.0])
def test_bad_steps_are_those_of_the_definition(spike):
    rng = np.random.default_rng(0)
    losses = (2 + rng.normal(0, 0.1, 300)).astype(np.float32)
    norms = np.ones(300, np.float32)
    losses[[3, 50, 131]] = np.nan, np.inf, -np.inf
    losses[[10, 60, 170]] = 9.0, 4.0, 2.9
    losses[180:] += 5  # a level that stays
    norms[[20, 90]] = np.inf, np.nan
    guard = Guard(spike)

    def one(seen, given):
        bad, seen = guard.judge(seen, *given)
        return seen, bad

    given = (jnp.arange(300, dtype=jnp.int32), jnp.array(losses), jnp.array(norms))
    seen, bad = jax.lax.scan(one, guard.init(), given)
    expected = told_plainly(losses.tolist(), norms.tolist(), spike)
    assert np.asarray(bad).tolist() == expected
    assert int(seen.skipped) == sum(expected)
    assert sum(expected) >= {None: 5, 1.0: 60, 6.0: 20}[spike]
    # It is used to the new level in the end.
    assert not any(expected[-20:]) or spike == 1.0


def test_equal_losses_have_a_spread_all_the_same():
    guard = Guard(6.0)
    seen = guard.init()._replace(losses=jnp.full(WINDOW, 2.0))
    judged = [bool(guard.judge(seen, 0, jnp.float32(x), jnp.float32(1))[0]) for x in (2.1, 2.2)]
    assert judged == [False, True]


def run(store, config, params, arrays, **settings):
    """Train; return the figures of each step."""
    figures = {}
    last = settings.pop("last", None)

    def observe(step, values):
        figures[step] = dict(values)
        if step == last:
            raise InterruptedError

    given = {"steps": STEPS, "batch_size": 2, "learning_rate": 0.02, "log_every": 1}
    incidents = Incidents(store.directory / "incidents", describe=lambda rows, _: rows.tolist())
    train(
        DPO(config, beta=0.1),
        params,
        arrays,
        store=store,
        incidents=incidents,
        observe=observe,
        optimizer=AdamW(),
        **{**given, "checkpoint_every": 1, **settings},
    )
    return figures


def state_of(store, step, config, params):
    program = train_program(
        DPO(config, beta=0.1), AdamW(), device_mesh(), logical_rules(), 1, None, health().guard
    )
    state = store.restore(step, program.init(jax.tree.map(jnp.array, params)))[1]
    return jax.tree.map(np.asarray, state)


def bits(tree):
    return [leaf.tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def poisoned(pair_arrays):
    """Pairs, one of them without a loss, and the steps from 1 at which it comes."""
    arrays = pair_arrays(12)
    arrays["reference_chosen"][5] = np.nan
    loader = Loader({"row": np.arange(12)}, batch_size=2, seed=0)
    return arrays, [step + 1 for step in range(STEPS) if 5 in loader[step]["row"]]


@pytest.mark.slow
def test_a_skipped_step_changes_nothing(config, params, poisoned, tmp_path, caplog):
    arrays, bad = poisoned
    gin.bind_parameter("health.policy", "skip")
    store = TrainStore(tmp_path / "store", keep=STEPS)
    figures = run(store, config, params, arrays, steps=bad[1] + 2)
    for step in bad[:2]:
        before, after, later = (
            state_of(store, s, config, params) for s in (step - 1, step, step + 1)
        )
        assert bits((before.params, before.opt_state)) == bits((after.params, after.opt_state))
        assert bits(after.params) != bits(later.params)
        assert (after.step, after.seen.skipped) == (step, before.seen.skipped + 1)
        assert f"at step {step}; the step is skipped" in caplog.text
    counts = [int(figures[step]["skipped_steps"]) for step in sorted(figures)]
    assert counts == [sum(b <= step for b in bad[:2]) for step in sorted(figures)]
    # The batch is there to be looked at, and no other.
    place = store.directory / "incidents"
    assert sorted(f.name for f in place.glob("*.npz")) == [f"step_{s:08d}.npz" for s in bad[:2]]
    with np.load(place / f"step_{bad[0]:08d}.npz") as batch:
        rows = batch["rows"]
        for name, array in arrays.items():
            np.testing.assert_array_equal(batch[name], array[rows])
    told = (place / f"step_{bad[0]:08d}.jsonl").read_text().splitlines()
    assert 5 in rows and [json.loads(line) for line in told] == rows.tolist()


def test_it_stops_at_the_limit(config, params, poisoned, tmp_path):
    arrays, bad = poisoned
    gin.parse_config("health.policy = 'skip'\nhealth.limit = 1")
    store = TrainStore(tmp_path)
    with pytest.raises(AyaError, match=rf"at step {bad[1]}; it is bad step 2, .*limit 1;"):
        run(store, config, params, arrays)
    assert store.latest_step() == bad[1] - 1


def test_what_stopped_goes_on_by_another_policy(config, params, poisoned, tmp_path):
    arrays, bad = poisoned
    stopped, skipped = TrainStore(tmp_path / "a"), TrainStore(tmp_path / "b")
    steps = bad[0] + 3
    for _ in range(2):  # the same command, the same line
        with pytest.raises(AyaError, match=f"at step {bad[0]}; lower .*health.policy = 'skip'"):
            run(stopped, config, params, arrays, steps=steps)
    gin.bind_parameter("health.policy", "skip")
    run(stopped, config, params, arrays, steps=steps)
    run(skipped, config, params, arrays, steps=steps)
    ends = [bits(state_of(store, steps, config, params)) for store in (stopped, skipped)]
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_a_resume_judges_as_the_unbroken_run(config, params, poisoned, tmp_path):
    arrays, _ = poisoned
    gin.parse_config(f"health.policy = 'skip'\nhealth.spike = {SPIKE}\nhealth.limit = {STEPS}")
    whole, broken = TrainStore(tmp_path / "whole"), TrainStore(tmp_path / "broken")
    # At this rate losses stay where they are and differ by their batches.
    settings = {"checkpoint_every": 7, "learning_rate": 1e-5}
    figures = run(whole, config, params, arrays, **settings)
    # Spikes were told, and not only what is no number.
    losses = [figures[step].get("loss", math.nan) for step in sorted(figures)]
    norms = [figures[step].get("grad_norm", math.nan) for step in sorted(figures)]
    expected = told_plainly(losses, norms, SPIKE)
    assert int(figures[STEPS]["skipped_steps"]) == sum(expected)
    later = zip(expected[43:], losses[43:], strict=True)
    assert any(bad and math.isfinite(loss) for bad, loss in later)
    with pytest.raises(InterruptedError):
        run(broken, config, params, arrays, **settings, last=48)
    assert broken.latest_step() == 42
    again = run(broken, config, params, arrays, **settings)
    assert again == {step: figures[step] for step in range(43, STEPS + 1)}
    ends = [bits(state_of(store, STEPS, config, params)) for store in (whole, broken)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("binding", "told"),
    [
        ("health.policy = 'skipp'", "unknown policy 'skipp'; did you mean 'skip'"),
        ("health.spike = 0", "health.spike is 0; it must be above 0"),
        ("health.limit = -1", "health.limit is -1; it must be 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_told(binding, told):
    gin.parse_config(binding)
    with pytest.raises(AyaError, match=told):
        health()


def test_nothing_is_written_where_nothing_happens(tmp_path):
    incidents = Incidents(tmp_path / "incidents")
    assert incidents.stacks == tmp_path / "incidents" / "stuck.process_0.txt"
    assert not Path(tmp_path / "incidents").exists()
