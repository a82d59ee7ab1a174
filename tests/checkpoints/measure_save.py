"""Measures a checkpoint: how long `save` blocks against the whole write, and the host's peak memory.

python tests/checkpoints/measure_save.py FOLDER [GIGABYTES] [DEVICES]

The state is float32: parameters, and two moments like them. A fresh process makes and saves it, on so
many virtual devices of the CPU, where the state itself is in the host's memory too.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SAVE = """
import json, sys, threading, time
from pathlib import Path
from typing import Any, NamedTuple
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from aya_jax.checkpoints.train_store import TrainStore

class State(NamedTuple):
    step: Any
    params: Any
    moments: Any

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

place, size = sys.argv[1], float(sys.argv[2])
mesh = Mesh(np.array(jax.devices()), ("fsdp",))
where = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
layers = max(1, round(size * 1e9 / 3 / 4 / (8 * 2048 * 1024)))
make = jax.jit(
    lambda key: jax.random.normal(key, (8, 2048, 1024)), out_shardings=where
)
keys = iter(jax.random.split(jax.random.key(0), 3 * layers))
trees = [{str(n): make(next(keys)) for n in range(layers)} for _ in range(3)]
state = jax.block_until_ready(State(jax.device_put(np.int32(1), NamedSharding(mesh, PartitionSpec())), trees[0], trees[1:]))
figures = {"bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state))}

# The peak of the write alone: the largest resident size while it goes on.
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, status("VmRSS"))
store = TrainStore(place)
store.save(1, jax.tree.map(lambda leaf: leaf[:1] if leaf.ndim else leaf, state))
store.wait()
before = status("VmRSS")
watcher = threading.Thread(target=watch); watcher.start()
started = time.monotonic()
store.save(2, state)
figures["blocked"] = time.monotonic() - started
store.wait()
figures["whole"] = time.monotonic() - started
done.set(); watcher.join()
figures["peak"] = peak - before
started = time.monotonic()
store.restore(None, state)
figures["restored"] = time.monotonic() - started
written = [p for p in Path(place, "step_00000002").rglob("*") if p.is_file()]
figures["written"] = sum(p.stat().st_size for p in written)
print(json.dumps(figures))
"""


def measure(place, gigabytes, devices):
    """Return seconds that `save` blocks, that the whole write takes, and that a restore does; bytes."""
    place = Path(place)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", SAVE, str(place), str(gigabytes)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main(place, gigabytes, devices):
    """Print the figures."""
    figures = measure(place, gigabytes, devices)
    print(f"state {figures['bytes'] / 1e9:.2f} GB on {devices} devices")
    print(f"save blocks {figures['blocked']:.3f} s of {figures['whole']:.1f} s")
    print(f"peak {figures['peak'] / 1e6:.0f} MB above the state")
    print(f"on the disk {figures['written'] / 1e9:.2f} GB, restored in {figures['restored']:.1f} s")


if __name__ == "__main__":
    size, count = [*sys.argv[2:], *("1", "1")[len(sys.argv[2:]) :]]
    main(sys.argv[1], float(size), int(count))
