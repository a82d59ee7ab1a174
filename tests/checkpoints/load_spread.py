"""Run by test_hugging_face, one of several processes: loads a model sharded, prints what it read.

Arguments: the Hugging Face directory, the coordinator's address, the process and their number. The
devices are a mesh of (one row a process) x 4.
"""

import json
import os
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aya_jax.checkpoints import hugging_face
from aya_jax.checkpoints.model_directory import load_config
from aya_jax.models.config import DecoderConfig

path, address, process, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
jax.distributed.initialize(address, num_processes=count, process_id=process)
mesh = Mesh(np.array(jax.devices()).reshape(count, 4), ("host", "chip"))

# Rows, columns and both of a stored matrix, whole layers, experts, and copies.
SPECS = {
    "q": P(None, "host", "chip"),
    "k": P(None, None, "host"),
    "v": P("host"),
    "o": P(None, "chip", None, "host"),
    "gate": P(None, "chip", None, "host"),
    "up": P(None, "host", "chip"),
    "down": P("host", None, None, "chip"),
    "router": P(None, "host"),
    "embedding": P("chip", "host"),
    "output": P("host"),
    "weight": P(),
}

read = 0
preadv = os.preadv


def counted(descriptor, buffers, offset):
    """Read, and count the bytes asked for."""
    global read
    read += sum(map(len, buffers))
    return preadv(descriptor, buffers, offset)


config = DecoderConfig.from_hf(load_config(path))
whole = hugging_face.load_params(path, config)
shardings = jax.tree_util.tree_map_with_path(
    lambda name, _: NamedSharding(mesh, SPECS[name[-1].key]), whole
)
os.preadv = counted
params = hugging_face.load_params(path, config, shardings=shardings)

held = 0
for mine, full in zip(jax.tree.leaves(params), jax.tree.leaves(whole), strict=True):
    assert mine.shape == full.shape and mine.dtype == full.dtype
    slices = {}
    for shard in mine.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.asarray(full)[shard.index])
        slices[str(shard.index)] = shard.data.nbytes
    held += sum(slices.values())
size = sum(leaf.nbytes for leaf in jax.tree.leaves(whole))
print(json.dumps({"read": read, "held": held, "whole": size}))
