"""The batch at step n is a pure function of (data, seed, n)."""

import jax
import numpy as np
import pytest

from aya_jax.data.loader import Loader

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


def test_processes_share_every_global_batch(monkeypatch):
    """The same batches come on another number of hosts."""
    alone = Loader(arrays(), batch_size=8, seed=3)
    for hosts in (2, 4):
        for step in (0, 2, 9):
            parts = []
            for host in range(hosts):
                with monkeypatch.context() as patch:
                    patch.setattr(jax, "process_count", lambda hosts=hosts: hosts)
                    patch.setattr(jax, "process_index", lambda host=host: host)
                    parts.append(Loader(arrays(), batch_size=8, seed=3)[step]["y"])
            np.testing.assert_array_equal(np.concatenate(parts), alone[step]["y"])


def test_a_single_row_is_repeated():
    batch = Loader(arrays(1), batch_size=3, seed=0)[5]
    assert batch["x"].tolist() == [0, 0, 0]
