"""The figures of a training: what they are of, by a clock that the test turns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.errors import AyaError
from aya_jax.training import telemetry as module
from aya_jax.training.incidents import Incidents
from aya_jax.training.loop import train
from aya_jax.training.objectives import SFT
from aya_jax.training.optimizer import AdamW
from aya_jax.training.telemetry import Telemetry, telemetry
from aya_jax.training.work import RowWork, row_work


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", clock)
    return clock


class Device:
    """A device of jax, as far as it tells of itself."""

    def __init__(self, kind, stats):
        self.device_kind = kind
        self.stats = stats

    def memory_stats(self):
        return self.stats


def devices(monkeypatch, *found):
    monkeypatch.setattr(jax, "devices", lambda: list(found))
    monkeypatch.setattr(jax, "local_devices", lambda: list(found))
    monkeypatch.setattr(jax, "device_count", lambda: len(found))


def go(watch, clock, steps, *, seconds=2.0, waits=0.5):
    for step in steps:
        with watch.waiting():
            clock.now += waits
        clock.now += seconds - waits
        watch.step(step)


def test_time_and_tokens_are_of_the_steps_since_the_last_call(clock):
    with Telemetry(work=RowWork(tokens=24.0, flops=1.0)) as watch:
        go(watch, clock, [1], seconds=60.0)  # it is compiled
        go(watch, clock, [2, 3, 4])
        watch.step(5)  # is dispatched while the figures of the fourth are read
        first = watch.figures(4, rows=8)
        go(watch, clock, [6, 7], seconds=4.0, waits=0.0)
        second = watch.figures(6, rows=8)
    assert first == {"time/step": 2.0, "time/data_wait_share": 0.25, "tokens_per_second": 96.0}
    assert second == {"time/step": 4.0, "time/data_wait_share": 0.0, "tokens_per_second": 48.0}


def test_there_is_no_figure_of_time_from_the_first_step_alone(clock):
    with Telemetry(work=RowWork(24.0, 1.0)) as watch:
        go(watch, clock, [7], seconds=60.0)
        assert watch.figures(7, rows=8) == {}
        go(watch, clock, [8])
        assert watch.figures(8, rows=8)["time/step"] == 2.0


def test_mfu_is_of_all_chips_by_their_data_sheet(clock, monkeypatch):
    devices(monkeypatch, Device("TPU v5 lite", None), Device("TPU v5 lite", None))
    with Telemetry(work=RowWork(tokens=1.0, flops=197e12 / 16)) as watch:
        go(watch, clock, [1, 2, 3])
        # 8 rows are half of what one chip can do in a second; they took two chips two seconds.
        assert watch.figures(3, rows=8)["mfu"] == pytest.approx(0.125)


def test_a_device_that_is_not_known_has_no_mfu(clock, monkeypatch):
    devices(monkeypatch, Device("cpu", None))
    with Telemetry(work=RowWork(1.0, 1e12)) as watch:
        go(watch, clock, [1, 2, 3])
        assert set(watch.figures(3, rows=8)) == {
            "time/step",
            "time/data_wait_share",
            "tokens_per_second",
        }


def test_memory_is_that_of_the_fullest_chip(monkeypatch):
    full = {"bytes_in_use": 3 << 30, "peak_bytes_in_use": 5 << 30, "num_allocs": 7}
    other = {"bytes_in_use": 4 << 30, "peak_bytes_in_use": 4 << 30, "num_allocs": 7}
    devices(monkeypatch, Device("TPU v5", full), Device("TPU v5", other))
    assert module.memory() == {"memory/in_use": 4.0, "memory/peak": 5.0}
    devices(monkeypatch, Device("cpu", None))
    assert module.memory() == {}


@pytest.mark.parametrize(
    ("seconds", "traced"), [(5.9, []), (6.1, ["steps take 6.1 s, usual are 2 s"])]
)
def test_slow_steps_ask_for_a_trace(clock, tmp_path, monkeypatch, seconds, traced):
    asked = []
    settings = {"directory": tmp_path, "events": tmp_path / "events", "slow_factor": 3.0}
    with telemetry(RowWork(1.0, 1.0), **settings) as watch:
        monkeypatch.setattr(watch._trace, "ask", asked.append)
        go(watch, clock, [1], seconds=60.0)
        for step in range(2, 11, 2):
            go(watch, clock, [step, step + 1])
            watch.figures(step + 1, rows=1)
        assert asked == []
        go(watch, clock, [12, 13], seconds=seconds)
        watch.figures(13, rows=1)
    assert asked == traced


def test_a_training_is_compiled_once_and_its_figures_come_from_its_steps(
    config, params, sft_arrays, tmp_path, caplog
):
    objective, arrays, told = SFT(config), sft_arrays(10), {}
    with telemetry(row_work(objective, arrays), events=tmp_path / "events") as watch:
        train(
            objective,
            jax.tree.map(jnp.array, params),
            arrays,
            store=TrainStore(tmp_path / "checkpoints"),
            incidents=Incidents(tmp_path / "incidents"),
            observe=lambda step, _: told.setdefault(step, watch.figures(step, rows=4)),
            telemetry=watch,
            optimizer=AdamW(b1=0.8),  # shared with no other test, so that it is compiled here
            steps=7,
            batch_size=4,
            log_every=3,
            checkpoint_every=2,
        )
        # The program was seen to be compiled, and never a second time.
        assert watch._compilations._programs.count("jit(step)") == 1
    assert caplog.messages == []
    assert sorted(told) == [3, 6, 7]
    tokens = (arrays["segment_ids"] > 0).sum() / len(arrays["tokens"]) * 4
    for figures in told.values():
        assert figures["tokens_per_second"] * figures["time/step"] == pytest.approx(tokens)
        assert 0 <= figures["time/data_wait_share"] <= 1


def test_slow_steps_before_anything_is_usual_ask_for_nothing(clock, tmp_path, monkeypatch):
    asked = []
    with telemetry(RowWork(1.0, 1.0), events=tmp_path, slow_factor=3.0) as watch:
        monkeypatch.setattr(watch._trace, "ask", asked.append)
        for step, seconds in enumerate((2.0, 2.0, 20.0, 60.0)):
            go(watch, clock, [step], seconds=seconds)
            watch.figures(step, rows=1)
    assert asked == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"trace_steps": 0}, "telemetry.trace_steps is 0"),
        ({"slow_factor": 1.0}, "telemetry.slow_factor is 1.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(AyaError, match=message):
        telemetry(RowWork(1.0, 1.0), **setting)


def test_a_second_compilation_is_told_with_what_changed(caplog):
    @jax.jit
    def step(state, batch, learning_rate):
        return state + batch["tokens"].sum() * learning_rate

    with Telemetry(work=RowWork(1.0, 1.0)) as watch:
        watched = watch.watched(step)
        state = jnp.zeros(3)
        for width in (4, 4, 4):
            state = watched(state, {"tokens": np.ones((2, width), np.float32)}, jnp.float32(1))
        assert caplog.messages == []
        for width in (5, 5, 6):
            state = watched(state, {"tokens": np.ones((2, width), np.float32)}, jnp.float32(1))
    [said] = caplog.messages
    assert said == (
        "jit(step) was compiled a second time: ['batch']['tokens'] float32[2,4] -> float32[2,5]"
    )
    assert state.tolist() == [8 * 3 + 10 * 2 + 12.0] * 3


def test_a_changed_type_and_place_are_told(caplog):
    @jax.jit
    def step(state, learning_rate):
        return state * learning_rate

    with Telemetry(work=RowWork(1.0, 1.0)) as watch:
        watched = watch.watched(step)
        watched(jnp.ones(3), jnp.float32(1))
        watched(jax.device_put(jnp.ones(3), jax.devices()[0]), 1.0)
    [said] = caplog.messages
    assert "['state'] float32[3] -> float32[3] on SingleDeviceSharding" in said
    assert "['learning_rate'] float32[] -> float32[] (weak)" in said


def test_what_others_compile_is_not_counted(caplog):
    @jax.jit
    def step(state):
        return state + 1

    with Telemetry(work=RowWork(1.0, 1.0)) as watch:
        watched = watch.watched(step)
        watched(jnp.ones(3))
        jax.jit(lambda x: x * 3)(jnp.ones(5))
        step(jnp.ones(4))  # the program of another training
        watched(jnp.ones(3))
    assert caplog.messages == []
