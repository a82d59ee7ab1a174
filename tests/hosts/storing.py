"""Run by test_storing, one of several processes: saves checkpoints and models, or reads them.

Arguments: what to do, and folders. The devices are a mesh of (half of them) x 2.
"""

import errno
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aya_jax.checkpoints import store, train_store
from aya_jax.checkpoints.directories import shared_directory
from aya_jax.checkpoints.model_directory import fill_model, load_params
from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.errors import AyaError
from aya_jax.sharding.processes import is_lead, leave, start_processes


class State(NamedTuple):
    """The shape of a train state, small."""

    step: Any
    params: Any
    opt_state: Any


# Rows, columns, whole layers, and copies in all processes.
SPECS = {"matrix": P("a", "b"), "stack": P("b", None, "a"), "bias": P(), "rows": P(None, "a")}


def params_at(step):
    """The parameters at a step, as NumPy arrays."""
    rng = np.random.default_rng(step)
    return {
        "bias": rng.normal(size=5).astype(np.float32),
        "layers": {
            "stack": np.asarray(jnp.asarray(rng.normal(size=(4, 3, 8)), jnp.bfloat16)),
            "rows": rng.normal(size=(6, 16)).astype(np.float32),
        },
        "matrix": rng.normal(size=(16, 8)).astype(np.float32),
    }


def state_at(step):
    """The whole state at a step, as NumPy arrays."""
    moments = params_at(1000 + step)
    return State(
        np.array(step, np.int32), params_at(step), ({"mu": moments}, np.array(7 * step, np.int32))
    )


def spread(tree):
    """The shardings of a tree, by the names of its leaves."""
    devices = np.array(jax.devices())
    mesh = Mesh(devices.reshape(-1, 2) if len(devices) > 1 else devices.reshape(1, 1), ("a", "b"))

    def sharding(path, leaf):
        spec = SPECS.get(str(getattr(path[-1], "key", "")), P())
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def placed(tree):
    """A tree of NumPy arrays on the devices of all processes."""
    return jax.tree.map(
        lambda leaf, where: jax.make_array_from_callback(
            np.shape(leaf), where, lambda index: np.asarray(leaf)[index]
        ),
        tree,
        spread(tree),
    )


def abstract(tree):
    """What `placed` would return, with no content."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            np.shape(leaf), np.asarray(leaf).dtype, sharding=where
        ),
        tree,
        spread(tree),
    )


def assert_same(tree, expected):
    """Every shard that is held here has the bits of the whole."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, whole in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        whole = np.asarray(whole)
        assert leaf.dtype == whole.dtype and leaf.shape == whole.shape
        for shard in leaf.addressable_shards:
            assert np.asarray(shard.data).tobytes() == whole[shard.index].tobytes()


def die(*_, **__):
    """End as a machine does that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment):
    """Let this process die at a moment of the next save."""
    if moment == "shards are half written":

        def half(self, place, args):
            (place / f"ocdbt.process_{jax.process_index()}").mkdir()
            (place / f"ocdbt.process_{jax.process_index()}" / "part").write_bytes(b"half")
            die()

        store.ocp.PyTreeCheckpointHandler.async_save = half
    elif moment == "shards are written":
        store.fingerprint_file = die
    elif moment == "one tree is listed":
        write = store.atomic_write
        store.atomic_write = lambda path, text: (
            write(path, text) if "params" in path.name else die()
        )
    elif moment == "the name is missing":
        os.rename = die
    elif moment == "all is listed":
        told = train_store.together
        train_store.together = lambda name, work: (
            die() if name == "checkpoint whole" else told(name, work)
        )


def save(folder):
    """Two checkpoints, and a model of the second's parameters; nothing that is donated is waited for."""
    kept = TrainStore(folder / "checkpoints")
    step = jax.jit(lambda state: jax.tree.map(jnp.zeros_like, state), donate_argnums=0)
    for number in (1, 2):
        state = placed(state_at(number))
        kept.save(number, state)
        step(state)
    assert kept.steps() == [1, 2]
    params = placed(params_at(2))
    fill_model(folder, config={}, params=params, lineage={})
    assert_same(load_params(folder, shardings=spread(params)), params_at(2))
    kept.close()
    with shared_directory(folder / "together") as partial:
        (partial / str(jax.process_index())).write_text("here")


def killed(folder, process, moment):
    """A whole checkpoint, and one at which a process dies."""
    kept = TrainStore(folder)
    kept.save(1, placed(state_at(1)))
    kept.wait()
    if jax.process_index() == int(process):
        die_at(moment)
    kept.save(2, placed(state_at(2)))
    kept.close()


def full(folder):
    """One process finds the disk full; all are told, and go on when there is room."""
    kept = TrainStore(folder)
    kept.save(1, placed(state_at(1)))
    kept.wait()
    copy = store.TreeWriter._copy

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if not is_lead():
        store.TreeWriter._copy = fail
    kept.save(2, placed(state_at(2)))
    try:
        kept.wait()
    except AyaError as error:
        print(error)
    store.TreeWriter._copy = copy
    assert kept.steps() == [1]
    kept.save(2, placed(state_at(2)))
    assert kept.steps() == [1, 2]
    kept.close()


def restore(*folders):
    """The newest whole checkpoint of each folder, and what was said of damaged ones."""
    logging.basicConfig(stream=sys.stdout, format="%(message)s", force=True)
    for folder in folders:
        kept = TrainStore(folder)
        step, state = kept.restore(None, abstract(state_at(1)))
        assert_same(state, state_at(step))
        print(json.dumps([folder.name, step]))


if __name__ == "__main__":
    start_processes()
    what, *rest = sys.argv[1:]
    if what == "killed":
        killed(Path(rest[0]), *rest[1:])
    else:
        {"save": save, "full": full, "restore": restore}[what](*map(Path, rest))
    sys.exit(leave(0))
