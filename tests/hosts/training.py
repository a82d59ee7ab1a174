"""Run by test_training, one of several processes: `aya sft` and `aya dpo` on meshes, one after another.

Arguments: a model, records to learn from, pairs, a folder to write into, and meshes as JSON.
"""

import json
import sys
from pathlib import Path

import gin

from aya_jax.recipe import verbs
from aya_jax.sharding.processes import leave, start_processes

BINDINGS = (
    "train.steps = 4",
    "train.batch_size = 4",
    "train.log_every = 1",
    "train.learning_rate = 0.003",
    "lengths.max_length = 64",
)

start_processes()
model, records, pairs, out, meshes = sys.argv[1:]
for number, mesh in enumerate(json.loads(meshes)):
    gin.clear_config()
    axes = [f"device_mesh.{axis} = {size}" for axis, size in mesh.items()]
    verbs.read_gin([], [*BINDINGS, *axes])
    verbs.train_verb("sft", model, records, str(Path(out, f"sft_{number}")), None)
    verbs.train_verb("dpo", model, pairs, str(Path(out, f"dpo_{number}")), None)
sys.exit(leave(0))
