"""The checkpoints of a training: the newest whole one is found, whatever happened to the others."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints import store as trees
from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.errors import AyaError


class State(NamedTuple):
    """The shape of a train state, small."""

    step: Any
    params: Any
    moments: Any


def state(step):
    rng = np.random.default_rng(step)
    return State(
        jnp.int32(step),
        {"a": jnp.asarray(rng.normal(0, 1, (4, 3)), jnp.bfloat16), "b": {"c": jnp.arange(step)}},
        # More than ten leaves: their names must sort as their numbers do.
        [jnp.asarray(rng.normal(0, 1, 2), jnp.float32) for _ in range(12)],
    )


def bits(value):
    return [
        (np.asarray(leaf).dtype.name, np.asarray(leaf).tobytes())
        for leaf in [value.step, value.params["a"], value.params["b"]["c"], *value.moments]
    ]


def flip(place):
    file = max((p for p in place.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    return file


def test_the_newest_are_kept_and_come_back_bit_for_bit(tmp_path):
    store = TrainStore(tmp_path / "checkpoints", keep=2)
    assert store.steps() == [] and store.latest_step() is None
    for step in (3, 6, 9):
        store.save(step, state(step))
    assert store.steps() == [6, 9] and store.latest_step() == 9
    for asked, found in ((None, 9), (6, 6)):
        step, restored = store.restore(asked, state(found))
        assert step == found and bits(restored) == bits(state(found))
        assert isinstance(restored, State)
    params = store.load_params(6)
    assert np.asarray(params["a"]).tobytes() == np.asarray(state(6).params["a"]).tobytes()


@pytest.mark.parametrize("part", ["params", "rest"])
def test_a_damaged_newest_is_told_and_the_one_before_is_taken(tmp_path, caplog, part):
    store = TrainStore(tmp_path)
    # The same shapes at every step, as in a training.
    store.save(5, state(5))
    store.save(6, state(5)._replace(step=jnp.int32(6)))
    store.wait()
    file = flip(tmp_path / "step_00000006" / part)
    step, restored = store.restore(None, state(5))
    assert step == 5 and bits(restored) == bits(state(5))
    assert str(file) in caplog.text and "trying the checkpoint before" in caplog.text
    # It is written anew when training comes by again.
    store.save(6, state(5)._replace(step=jnp.int32(6)))
    assert store.restore(None, state(5))[0] == 6
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000005", "step_00000006"]


def test_when_no_whole_one_is_left_it_is_told(tmp_path):
    store = TrainStore(tmp_path)
    with pytest.raises(AyaError, match="there is no checkpoint"):
        store.restore(None, state(1))
    for step in (1, 2):
        store.save(step, state(1))
        store.wait()
        file = flip(tmp_path / f"step_{step:08d}")
    with pytest.raises(AyaError, match="is damaged"):
        store.restore(None, state(1))
    with pytest.raises(AyaError) as error:
        store.restore(2, state(1))
    assert str(file) in str(error.value)


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from typing import Any, NamedTuple
from aya_jax.checkpoints import store
from aya_jax.checkpoints.train_store import TrainStore

class State(NamedTuple):
    step: Any
    params: Any

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

place, moment = sys.argv[1:]
kept = TrainStore(place)
kept.save(1, State(np.array(1, np.int32), {"a": np.arange(5000.0)}))
kept.wait()
if moment == "arrays are half written":
    store.ocp.PyTreeCheckpointHandler.async_save = lambda self, place, args: (
        (place / "part").write_bytes(b"half"), die())
elif moment == "params are written and the rest is not":
    write = store.atomic_write
    store.atomic_write = lambda path, data: write(path, data) if "params" in path.name else die()
else:
    os.rename = die
kept.save(2, State(np.array(2, np.int32), {"a": np.ones(5000)}))
kept.close()
"""


@pytest.mark.parametrize(
    "moment",
    [
        "arrays are half written",
        "params are written and the rest is not",
        "the name is still missing",
    ],
)
def test_a_process_killed_while_saving_leaves_the_checkpoint_before(tmp_path, moment):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), moment], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr

    class Like(NamedTuple):
        step: Any
        params: Any

    store = TrainStore(tmp_path)
    assert store.steps() == [1]
    step, restored = store.restore(None, Like(np.array(0, np.int32), {"a": np.zeros(5000)}))
    assert (step, int(restored.step)) == (1, 1)
    np.testing.assert_array_equal(restored.params["a"], np.arange(5000.0))
    store.save(2, Like(np.array(2, np.int32), {"a": np.ones(5000)}))
    assert store.steps() == [1, 2]
    assert store.restore(None, restored)[0] == 2
    # What was half written is never taken for a checkpoint, and the next save clears it away.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


@pytest.fixture
def held(monkeypatch):
    """Nothing is listed as whole until this is set."""
    go = threading.Event()
    write = trees.TreeWriter._written
    monkeypatch.setattr(trees.TreeWriter, "_written", lambda self: go.wait(60) and write(self))
    yield go
    go.set()


def test_what_is_saved_is_what_was_there_however_slow_the_disk(tmp_path, held):
    store = TrainStore(tmp_path)
    before = state(5)
    mutable = before._replace(moments=[np.ones(3, np.float32), *before.moments[1:]])
    expected = [*bits(mutable)]
    store.save(5, mutable)
    # The step after it donates what it was given, and whoever owns an array may change it.
    mutable.moments[0][:] = 7.0
    again = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    again(mutable.params)
    assert list(tmp_path.glob("step_*")) == []
    held.set()
    step, restored = store.restore(None, mutable)
    assert step == 5 and bits(restored) == expected


def test_the_next_save_waits_for_the_one_before(tmp_path, held):
    store = TrainStore(tmp_path)
    store.save(1, state(5))
    second = threading.Thread(target=lambda: store.save(2, state(5)))
    second.start()
    second.join(0.2)
    assert second.is_alive() and list(tmp_path.glob("step_*")) == []
    held.set()
    second.join()
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize("surfaces", ["save", "wait", "close", "steps", "restore"])
def test_a_disk_that_fills_in_the_background_is_told_at_the_next_call(
    tmp_path, monkeypatch, surfaces
):
    store = TrainStore(tmp_path)
    store.save(1, state(1))
    store.wait()
    full = OSError(28, os.strerror(28))
    monkeypatch.setattr(trees.ocp.PyTreeCheckpointHandler, "finalize", raising(full))
    store.save(2, state(2))
    calls = {
        "save": lambda: store.save(3, state(3)),
        "restore": lambda: store.restore(None, state(1)),
    }
    with pytest.raises(AyaError, match="the disk is full; free some space") as error:
        calls.get(surfaces, getattr(store, surfaces))()
    assert "\n" not in str(error.value) and "step_00000002" in str(error.value)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    if surfaces != "close":
        store.save(2, state(2))
        assert store.steps() == [1, 2]


def raising(error):
    """A function that raises."""

    def fail(*_, **__):
        raise error

    return fail


def test_what_has_no_room_is_not_begun(tmp_path):
    store = TrainStore(tmp_path)
    store.save(1, state(1))
    huge = jax.ShapeDtypeStruct((1 << 60,), jnp.float32)
    with pytest.raises(AyaError, match="the disk is full") as error:
        store.save(2, state(2)._replace(moments=[huge]))
    assert "MiB are needed" in str(error.value)
    assert store.steps() == [1] and store.restore(None, state(1))[0] == 1


def test_every_so_many_steps_one_stays(tmp_path):
    store = TrainStore(tmp_path, keep=2, keep_every=4)
    for step in range(1, 11):
        store.save(step, state(1))
    assert store.steps() == [4, 8, 9, 10]


def test_a_damaged_one_is_not_one_of_those_that_stay(tmp_path):
    store = TrainStore(tmp_path, keep=2)
    for step in (4, 5):
        store.save(step, state(1))
    store.wait()
    flip(tmp_path / "step_00000005")
    assert store.restore(None, state(1))[0] == 4
    store.save(7, state(1))
    assert store.steps() == [4, 7]


def test_a_checkpoint_that_was_being_dropped_is_none(tmp_path, monkeypatch):
    store = TrainStore(tmp_path, keep=1)
    store.save(1, state(1))
    store.wait()
    monkeypatch.setattr("shutil.rmtree", raising(KeyboardInterrupt()))
    store.save(2, state(1))
    with pytest.raises(KeyboardInterrupt):
        store.wait()
    monkeypatch.undo()
    assert store.steps() == [2] and len(list(tmp_path.iterdir())) == 2
    store.save(3, state(1))
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            lambda s: s._replace(params={**s.params, "a": jnp.zeros((4, 2), jnp.bfloat16)}),
            "'a' is bfloat16 [4, 3] there and bfloat16 [4, 2] here",
        ),
        (
            lambda s: s._replace(moments=s.moments[:-1]),
            "'moments.11' is float32 [2] there and not here",
        ),
        (
            lambda s: s._replace(moments={"mu": s.moments[0]}),
            "'moments.0' is float32 [2] there and not here (and 12 more)",
        ),
        (
            lambda s: s._replace(step=jnp.float32(0)),
            "'step' is int32 [] there and float32 [] here",
        ),
    ],
)
def test_a_state_of_another_model_or_optimizer_is_told(tmp_path, caplog, other, told):
    store = TrainStore(tmp_path)
    for step in (1, 2):
        store.save(step, state(1))
    with pytest.raises(AyaError) as error:
        store.restore(None, other(state(1)))
    assert f"{tmp_path / 'step_00000002'}: is of another model or optimizer: {told}" in str(
        error.value
    )
    assert "\n" not in str(error.value) and not caplog.text


@pytest.mark.slow
def test_a_state_goes_from_any_mesh_to_any_other_bit_for_bit(tmp_path):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("other_meshes.py"), tmp_path / "checkpoints"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
