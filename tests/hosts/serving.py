"""Run by test_serving, one of several processes: samples and scores on a mesh, and writes what came.

Arguments: a language model, a reward model, the file to write, and meshes as JSON.
"""

import json
import sys

import gin
import jax
import numpy as np

from aya_jax.arbitrage.arbiter import score
from aya_jax.data.examples import pad, tokenize
from aya_jax.generation.engine import sample
from aya_jax.model import load
from aya_jax.recipe.reference import sequence_logprobs
from aya_jax.sharding.place import gin_place
from aya_jax.sharding.processes import from_all, is_lead, leave, start_processes

PROMPTS = ["Montag", "domenica?", "Какой сегодня день?", "月曜日", "a"]
SHAPE = {"max_new_tokens": 6, "batch_size": 3, "prompt_multiple": 32}


def held(model):
    """Return the share of the parameters' bytes that this process holds."""
    leaves = jax.tree.leaves(model.params)
    parts = [{str(s.index): s.data.nbytes for s in leaf.addressable_shards} for leaf in leaves]
    return sum(sum(each.values()) for each in parts) / sum(leaf.nbytes for leaf in leaves)


def serve(model_dir, reward_dir):
    """Return completions, log-probabilities and rewards, all JSON-able."""
    place = gin_place()
    model = load(model_dir, reward=False, place=place)
    turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    texts = sample(model, turns, samples=2, temperature=0.9, top_k=40, seed=3, **SHAPE)
    records = [{"prompt": p, "completion": p[:4]} for p in PROMPTS]
    examples = [tokenize(r, model.tokenizer, field="completion", max_length=64) for r in records]
    logprobs = sequence_logprobs(model, pad(examples, length=64), batch_size=3)
    arbiter = load(reward_dir, reward=True, place=place)
    rewards = score(arbiter, records, [r["completion"] for r in records], batch_size=3)
    return {
        "texts": texts,
        "logprobs": np.asarray(logprobs).tolist(),
        "rewards": rewards.tolist(),
        "held": [held(model), held(arbiter)],
    }


start_processes()
*dirs, out, meshes = sys.argv[1:]
results = []
for mesh in json.loads(meshes):
    gin.clear_config()
    for name, size in mesh.items():
        gin.bind_parameter(f"device_mesh.{name}", size)
    results.append(from_all("served", serve(*dirs)))
if is_lead():
    with open(out, "w") as file:
        json.dump(results, file)
sys.exit(leave(0))
