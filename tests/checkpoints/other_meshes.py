"""Run by test_train_store with eight devices: a train state goes through the disk onto other meshes."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aya_jax.checkpoints.leaves import on_devices, stored_checksums
from aya_jax.checkpoints.slices import open_slices
from aya_jax.checkpoints.store import leaf_checksums
from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.models.architecture import abstract_params, logical_axes
from aya_jax.models.config import DecoderConfig
from aya_jax.sharding.mesh import AXES, logical_rules, replicated, shardings

CONFIG = DecoderConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 2), (1, 4, 2)]


def mesh_of(data, fsdp, tensor):
    devices = np.array(jax.devices()[: data * fsdp * tensor])
    return Mesh(devices.reshape(data, fsdp, tensor, 1, 1), AXES)


class State(NamedTuple):
    """The shape of a train state; moments lie as their parameters do."""

    step: Any
    params: Any
    opt_state: Any


def state_on(mesh):
    """The same state on any mesh."""
    rng = np.random.default_rng(0)
    shapes = abstract_params(CONFIG)
    params, mu, nu = (
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
        for _ in range(3)
    )
    where = shardings(logical_axes(CONFIG), mesh, logical_rules())
    whole = replicated(mesh)
    return jax.device_put(
        State(np.array(9, np.int32), params, (np.array(9, np.int32), {"mu": mu, "nu": nu})),
        State(whole, where, (whole, {"mu": where, "nu": where})),
    )


def bits(tree):
    return [(leaf.dtype.name, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


store = TrainStore(sys.argv[1], keep=len(MESHES))
states = [state_on(mesh_of(*sizes)) for sizes in MESHES]
for number, state in enumerate(states):
    store.save(number, state)
store.wait()
whole = leaf_checksums(states[0].params)
for number in range(len(MESHES)):
    for like in (states[0], states[2], states[5]):
        # What is restored onto is told by shapes and shardings alone.
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        step, restored = store.restore(number, abstract)
        assert step == number and bits(restored) == bits(states[0])
        for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
            assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
    place = Path(sys.argv[1], f"step_{number:08d}")
    assert stored_checksums(place, "params") == whole
    if number not in (0, 5):
        continue
    # A leaf at a time, onto parts that lie together, parts that do not, and copies.
    mesh = mesh_of(1, 4, 2)
    for leaf in open_slices(store.path(number), "params").values():
        array = leaf.read().result()
        for spec in (P(), P("fsdp"), P(("tensor", "fsdp")), P(None, "tensor")):
            placing = NamedSharding(mesh, P(*spec[: array.ndim]))
            try:
                placing.shard_shape(array.shape)
            except ValueError:
                continue
            placed = on_devices(leaf, jnp.bfloat16, placing)
            assert placed.sharding == placing
            np.testing.assert_array_equal(placed, jnp.asarray(array, jnp.bfloat16))
store.close()
