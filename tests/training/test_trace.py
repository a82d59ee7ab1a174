"""A trace is written once a request, where TensorBoard looks for it."""

import os
import signal

import jax
import jax.numpy as jnp
import pytest

from aya_jax.training import trace as module
from aya_jax.training.trace import Trace


class Profiler:
    """Notes between which steps a trace is written."""

    def __init__(self):
        self.seen = []
        self.step = 0

    def start_trace(self, place):
        self.seen.append([place, self.step])

    def stop_trace(self):
        self.seen[-1].append(self.step)


@pytest.fixture
def profiler(monkeypatch):
    profiler = Profiler()
    monkeypatch.setattr(jax, "profiler", profiler)
    return profiler


def go(trace, profiler, steps):
    for step in steps:
        profiler.step = step
        trace.step(step, None)


def test_a_file_asks_once(tmp_path, profiler):
    with Trace(tmp_path, tmp_path / "events", steps=3) as trace:
        go(trace, profiler, range(1, 5))
        assert profiler.seen == [] and not trace.written
        (tmp_path / "trace").touch()
        go(trace, profiler, range(5, 20))
        assert profiler.seen == [[str(tmp_path / "events"), 5, 8]] and trace.written
        assert not (tmp_path / "trace").exists()
        (tmp_path / "trace").touch()
        go(trace, profiler, range(20, 30))
    assert [part[1:] for part in profiler.seen] == [[5, 8], [20, 23]]


def test_a_process_that_does_not_remove_the_file_still_answers_once(
    tmp_path, profiler, monkeypatch
):
    monkeypatch.setattr(module, "is_lead", lambda: False)
    (tmp_path / "trace").touch()
    with Trace(tmp_path, tmp_path / "events", steps=2) as trace:
        go(trace, profiler, range(1, 20))
    assert [part[1:] for part in profiler.seen] == [[1, 3]]
    assert (tmp_path / "trace").exists()


def test_a_signal_asks_and_is_given_back(tmp_path, profiler):
    before = signal.getsignal(signal.SIGUSR1)
    with Trace(None, tmp_path / "events", steps=2) as trace:
        go(trace, profiler, [1])
        os.kill(os.getpid(), signal.SIGUSR1)
        go(trace, profiler, range(2, 9))
    assert [part[1:] for part in profiler.seen] == [[2, 4]]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_end_of_a_training_ends_a_trace_and_leaves_no_request(tmp_path, profiler):
    with Trace(tmp_path, tmp_path / "events", steps=5) as trace:
        (tmp_path / "trace").touch()
        go(trace, profiler, [1, 2])
        os.utime(tmp_path / "trace", (1, 1))  # asked for again meanwhile
    assert [part[1:] for part in profiler.seen] == [[1, 2]]
    assert list(tmp_path.iterdir()) == []


def test_a_profiler_that_is_at_work_ends_no_training(tmp_path, profiler, monkeypatch, caplog):
    def start_trace(place):
        raise RuntimeError("Profile has already been started.")

    monkeypatch.setattr(profiler, "start_trace", start_trace, raising=False)
    (tmp_path / "trace").touch()
    with Trace(tmp_path, tmp_path / "events", steps=2) as trace:
        go(trace, profiler, range(1, 6))
        assert not trace.written
    assert caplog.messages == ["no trace is written: Profile has already been started."]


def test_jax_writes_the_trace_of_whole_steps(tmp_path):
    step = jax.jit(lambda x: x @ x.T)
    x = step(jnp.ones((8, 8)))
    (tmp_path / "trace").touch()
    with Trace(tmp_path, tmp_path / "events", steps=2) as trace:
        for number in range(1, 5):
            x = step(x)
            trace.step(number, x)
        [written] = (tmp_path / "events").rglob("*.xplane.pb")
    assert written.parent.parent == tmp_path / "events" / "plugins" / "profile"
    assert written.stat().st_size > 0
