"""Run by test_loader as one of several processes with two devices each: what comes of `Loader.on`.

Arguments: host:port, the number of processes, which this is, and as JSON {"rows", "batch_size", "seed",
"steps"}. Prints as JSON the rows that were read, and for every device the part of each batch that it holds.
"""

import json
import sys

import jax
import numpy as np

from aya_jax.data.loader import Loader
from aya_jax.sharding.mesh import batch_sharding, device_mesh, logical_rules


class Watched(np.ndarray):
    """An array that knows which of its rows were read."""

    read: set

    def __getitem__(self, index):
        self.read |= set(np.arange(len(self))[index].tolist())
        return np.asarray(self)[index]


def main():
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    asked = json.loads(sys.argv[4])
    numbers = np.arange(asked["rows"])
    arrays = {"x": numbers, "y": numbers[:, None] * [10, 100]}
    watched = {name: array.view(Watched) for name, array in arrays.items()}
    for array in watched.values():
        array.read = set()
    loader = Loader(watched, batch_size=asked["batch_size"], seed=asked["seed"])
    sharding = batch_sharding(device_mesh(), logical_rules())
    parts = []
    for step in asked["steps"]:
        for name, array in loader.on(step, sharding).items():
            for shard in array.addressable_shards:
                rows = shard.index[0]
                parts.append([step, name, rows.start, rows.stop, shard.data.tolist()])
    print(json.dumps({"parts": parts, "read": sorted(watched["x"].read)}))


main()
