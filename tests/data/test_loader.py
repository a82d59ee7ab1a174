"""The batch at step n is a pure function of (data, seed, n)."""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from aya_jax.data.loader import Loader, prefetch
from aya_jax.sharding.mesh import batch_sharding, device_mesh, logical_rules

COUNT = 23


def arrays(count=COUNT):
    return {"x": np.arange(count), "y": np.arange(count)[:, None] * [10, 100]}


def drawn(loader, steps):
    return np.concatenate([loader[n]["x"] for n in range(steps)]).tolist()


def test_rows_stay_together_and_keep_their_dtype():
    data = {"x": np.arange(COUNT, dtype=np.int32), "m": np.arange(COUNT) % 2 == 0}
    batch = Loader(data, batch_size=5, seed=0)[3]
    assert {name: (a.dtype, a.shape) for name, a in batch.items()} == {
        "x": (np.int32, (5,)),
        "m": (bool, (5,)),
    }
    assert (batch["m"] == (batch["x"] % 2 == 0)).all()


@pytest.mark.parametrize("batch_size", [1, 4, 23, 50])
def test_every_row_comes_once_a_pass(batch_size):
    loader = Loader(arrays(), batch_size=batch_size, seed=1)
    order = drawn(loader, -(-4 * COUNT // batch_size))
    passes = [order[i * COUNT : (i + 1) * COUNT] for i in range(4)]
    for rows in passes:
        assert sorted(rows) == list(range(COUNT))
    # Each pass in an order of its own, none of them that of the file.
    assert len({tuple(rows) for rows in [*passes, range(COUNT)]}) == 5


def test_any_step_can_be_asked_for_at_any_time():
    straight = Loader(arrays(), batch_size=4, seed=2)
    expected = [straight[n]["x"].tolist() for n in range(30)]
    resumed = Loader(arrays(), batch_size=4, seed=2)
    assert [resumed[n]["x"].tolist() for n in range(17, 30)] == expected[17:]
    for n in (29, 3, 3, 0, 12):
        assert resumed[n]["x"].tolist() == expected[n]
    assert len(Loader(arrays(), batch_size=4, seed=2)[10**9]["x"]) == 4


def test_the_order_is_that_of_the_seed_and_not_of_the_batch_size():
    orders = {seed: drawn(Loader(arrays(), batch_size=4, seed=seed), 12) for seed in range(5)}
    assert len({tuple(order) for order in orders.values()}) == 5
    assert drawn(Loader(arrays(), batch_size=6, seed=0), 8) == orders[0]


@pytest.mark.slow
def test_processes_read_their_own_share_of_the_same_batches():
    steps, size = (0, 2, 9), 16
    alone = Loader(arrays(40), batch_size=size, seed=5)
    found = run_processes(2, rows=40, batch_size=size, seed=5, steps=steps)
    held = {(step, name): [] for step in steps for name in "xy"}
    for process in found:
        for step, name, start, stop, values in process["parts"]:
            np.testing.assert_array_equal(alone[step][name][start:stop], values)
            held[step, name].append((start, stop))
    # The parts of all processes are the batch, each row once.
    for parts in held.values():
        assert sorted(parts) == [(i, i + 4) for i in range(0, size, 4)]
    for process in found:
        own = {
            row
            for step, name, start, stop, _ in process["parts"]
            if name == "x"
            for row in alone.rows(step)[start:stop]
        }
        assert set(process["read"]) == own


def run_processes(count, **asked):
    """Return what each of several processes of `spread_batches.py` printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, Path(__file__).with_name("spread_batches.py"), address, str(count)]
    processes = [
        subprocess.Popen([*command, str(own), json.dumps(asked)], stdout=subprocess.PIPE)
        for own in range(count)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return [json.loads(output) for output in outputs]


def test_the_batch_on_a_device_is_the_one_on_the_host():
    sharding = batch_sharding(device_mesh(), logical_rules())
    loader = Loader(arrays(), batch_size=5, seed=4)
    for step in (0, 7):
        placed = loader.on(step, sharding)
        assert placed["y"].sharding.is_equivalent_to(sharding, 2)
        for name, array in loader[step].items():
            np.testing.assert_array_equal(placed[name], array)


def test_a_single_row_is_repeated():
    batch = Loader(arrays(1), batch_size=3, seed=0)[5]
    assert batch["x"].tolist() == [0, 0, 0]


def test_items_are_made_ahead_and_come_in_order():
    made, may_go_on = [], threading.Semaphore(0)

    def make(number):
        made.append(number)
        may_go_on.release()
        return number * 10

    with prefetch(make, 3, 9, ahead=2) as items:
        assert next(items) == 30
        # Two more than were asked for are made, and then no more until another is.
        assert all(may_go_on.acquire(timeout=60) for _ in range(3))
        assert made == [3, 4, 5]
        assert list(items) == [40, 50, 60, 70, 80]
    assert made == [3, 4, 5, 6, 7, 8]
    with prefetch(make, 4, 4) as items:
        assert list(items) == []


def test_an_error_comes_at_its_own_item():
    def make(number):
        if number == 2:
            raise KeyError(number)
        return number

    with prefetch(make, 0, 5, ahead=4) as items:
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(KeyError):
            next(items)


def test_nothing_is_made_after_the_block():
    made = []
    with prefetch(made.append, 0, 1000, ahead=3) as items:
        next(items)
    assert set(made) <= set(range(4))
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
