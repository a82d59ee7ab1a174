"""SIGTERM at any moment: what is whole is kept, and a training goes on from where it was."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.training import preemption
from aya_jax.training.incidents import Incidents
from aya_jax.training.loop import train
from aya_jax.training.objectives import SFT
from aya_jax.training.optimizer import AdamW
from aya_jax.training.preemption import PREEMPTED, Preempted, heard, until_saved

STEPS = 8


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def preempted(work):
    """Return what is told when a SIGTERM ends `work`."""
    with pytest.raises(Preempted) as end, heard():
        work()
    return str(end.value)


def test_it_ends_what_is_no_training_at_once():
    before = signal.getsignal(signal.SIGTERM)

    def work():
        try:
            terminate()
        except Exception:  # what swallows errors does not swallow it
            pytest.fail("it is an ordinary exception")

    assert preempted(work) == "what is whole is kept"
    assert signal.getsignal(signal.SIGTERM) is before


def test_where_it_cannot_be_raised_it_is_said_again(capsys):
    class Told:
        def __del__(self):  # nothing that is raised here goes any further
            terminate()
            self.heard = True

    def work():
        told = Told()
        del told
        threading.Event().wait(60)

    assert preempted(work) == "what is whole is kept"
    assert "Preempted" not in capsys.readouterr().err


def test_a_training_is_told_the_step_to_save_at():
    asked = []

    def work():
        with until_saved() as due:
            for step in range(6):
                if step == 3:
                    terminate()
                asked.append(due(step))

    assert preempted(work) == "the training was saved"
    assert asked == [False, False, False, True, True, True]
    # The next one is not told of it.
    with heard(), until_saved() as due:
        assert not any(due(step) for step in range(6))


def test_one_that_comes_when_all_is_done_is_heard_at_the_end():
    done = []

    def work():
        with until_saved():
            terminate()
            done.append("trained")
        done.append("went on")

    assert preempted(work) == "the training was saved"
    assert done == ["trained"]


def run(config, params, arrays, store, *, terminate_at=None, **settings):
    figures = {}

    def observe(step, values):
        figures[step] = dict(values)
        if step == terminate_at:
            terminate()

    train(
        SFT(config),
        params,
        arrays,
        store=store,
        incidents=Incidents(Path("none")),
        observe=observe,
        optimizer=AdamW(),
        **{"steps": STEPS, "batch_size": 4, "log_every": 1, "checkpoint_every": 100, **settings},
    )
    return figures


def parameters(store):
    tree = store.load_params(STEPS)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def unbroken(config, params, sft_arrays, tmp_path_factory):
    store = TrainStore(tmp_path_factory.mktemp("unbroken"))
    figures = run(config, params, sft_arrays(10), store)
    return figures, parameters(store)


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_preempted_training_is_saved_and_goes_on_to_the_same_bits(
    config, params, sft_arrays, unbroken, tmp_path, every
):
    arrays, store, ends = sft_arrays(10), TrainStore(tmp_path), []
    for at in (1, 4):
        told = preempted(
            lambda at=at: run(
                config, params, arrays, store, terminate_at=at, checkpoint_every=every
            )
        )
        ends.append(int(told.removeprefix("saved at step ")))
        assert store.latest_step() == ends[-1]
    # As soon as it can: one step was begun before the figures of the one before it were read.
    assert ends in ([1, 4], [2, 5]), ends
    told = run(config, params, arrays, store, checkpoint_every=every)
    assert told == {step: unbroken[0][step] for step in range(ends[-1] + 1, STEPS + 1)}
    assert parameters(store) == unbroken[1]


def test_one_in_the_last_step_loses_nothing(config, params, sft_arrays, unbroken, tmp_path):
    store = TrainStore(tmp_path)
    told = preempted(lambda: run(config, params, sft_arrays(10), store, terminate_at=STEPS))
    assert told == "the training was saved"
    assert parameters(store) == unbroken[1]
    with heard():
        assert run(config, params, sft_arrays(10), store) == {}


def test_compiled_code_that_does_not_return_is_ended_all_the_same():
    # Waiting for a lock of the system's is like it: no Python runs in the main thread any more.
    source = """
import ctypes, os, signal, threading
from aya_jax.training import preemption
preemption.GRACE = 0.1
lock, system = ctypes.create_string_buffer(64), ctypes.CDLL(None)
with preemption.heard():
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    system.pthread_mutex_lock(lock)
    system.pthread_mutex_lock(lock)
"""
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert ended.returncode == PREEMPTED, ended.stderr
    assert preemption.PREEMPTED == 75
