"""Run by test_step: three steps on one device and on others; prints how far they are apart.

The argument is a JSON list of (objective, sizes of the mesh axes in the order of AXES, micro-batches, sides of
the torus that the devices are taken for).
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import init_params
from aya_jax.models.lora import LoRA, freeze, init_adapters
from aya_jax.sharding import place
from aya_jax.sharding.mesh import AXES, logical_rules
from aya_jax.training.objectives import DPO, SFT, Reward
from aya_jax.training.optimizer import AdamW
from aya_jax.training.step import train_program

CONFIG = DecoderConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    logit_scale=0.5,
    max_position_embeddings=64,
)
EXPERTS = DecoderConfig.from_hf(
    {
        "model_type": "mixtral",
        "vocab_size": 48,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
)
OBJECTIVES = {
    "sft": SFT(CONFIG),
    "experts": SFT(EXPERTS),
    "dpo": DPO(CONFIG, beta=0.3, sft_weight=0.2),
    "dpo, reference held": DPO(CONFIG, beta=0.3, sft_weight=0.2, held_reference=True),
    "reward": Reward(CONFIG, center_coefficient=0.05, sft_weight=0.2),
}
ATTENTION = ("q", "k", "v", "o")
# What is trained in place of the parameters, on a base that is split over the devices too.
ADAPTED = {
    "lora": (SFT(CONFIG), LoRA(4, 4.0, base_dtype="int8")),
    "lora on experts": (SFT(EXPERTS), LoRA(4, 4.0, ATTENTION, base_dtype="int8")),
}
STEPS, ROWS, WIDTH = 3, 8, 12


def rows(rng):
    """Rows that end early, of two segments, and with unequal counts of learnt tokens."""
    ends, cuts = rng.integers(8, WIDTH + 1, ROWS), rng.integers(3, 7, ROWS)
    place = np.arange(WIDTH)[None]
    real, second = place < ends[:, None], place >= cuts[:, None]
    return {
        "tokens": np.where(real, rng.integers(1, 48, (ROWS, WIDTH)), 0).astype(np.int32),
        "positions": np.where(second, place - cuts[:, None], place).astype(np.int32),
        "segment_ids": np.where(real, 1 + second, 0).astype(np.int32),
        "mask": real & (place > 0) & (place != cuts[:, None]) & (rng.random((ROWS, WIDTH)) < 0.6),
    }


def pairs(rng):
    sides = {}
    for side in ("chosen", "rejected"):
        one = rows(rng)
        one["segment_ids"] = np.minimum(one["segment_ids"], 1)
        one["positions"] = np.broadcast_to(np.arange(WIDTH, dtype=np.int32), (ROWS, WIDTH)).copy()
        sides.update({f"{side}_{name}": array for name, array in one.items()})
        sides[f"reference_{side}"] = rng.normal(-8, 2, ROWS).astype(np.float32)
    return sides


def run(name, shape, accumulate):
    objective, *lora = ADAPTED.get(name) or (OBJECTIVES[name],)
    count = int(np.prod(shape))
    mesh = Mesh(np.asarray(jax.devices()[:count]).reshape(shape), AXES)
    program = train_program(
        objective, AdamW(weight_decay=0.1), mesh, logical_rules(), accumulate, *lora
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda: init_params(objective.config, jax.random.key(0), reward_head=objective.reward_head)
    )
    start = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
    base = [jax.device_put(freeze(each, start), program.base_sharding) for each in lora]
    for each in lora:
        adapters = init_adapters(each, start, jax.random.key(0))
        start = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), adapters)
    held = []
    if objective.held_reference:
        other = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
        held = [jax.device_put(other, program.reference_sharding)]
    state, metrics, moments = program.init(start), [], None
    for _ in range(STEPS):
        batch = rows(rng) if isinstance(objective, SFT) else pairs(rng)
        batch = jax.device_put(batch, program.batch_sharding)
        state, figures = program.step(state, batch, jnp.float32(0.01), *base, *held)
        metrics.append({name: float(value) for name, value in figures.items()})
        if moments is None:
            moments = jax.tree.map(np.asarray, state.opt_state)
    assert program.step._cache_size() == 1
    first = jax.devices()[0]
    # Adapters are small, and their rank is not split.
    leaves = jax.tree.leaves(base or (state.params, state.opt_state, held))
    here = [s.data.nbytes for x in leaves for s in x.addressable_shards if s.device == first]
    tokens = next(array for name, array in batch.items() if name.endswith("tokens"))
    return {
        "moments": moments,
        "params": jax.tree.map(np.asarray, state.params),
        "metrics": metrics,
        "share of the state": sum(here) / sum(x.nbytes for x in leaves),
        "rows": tokens.addressable_shards[0].data.shape[0],
    }


def farthest(ours, theirs):
    def apart(a, b):
        return float((np.abs(a - b) / (1 + np.abs(b))).max())

    return max(jax.tree.leaves(jax.tree.map(apart, ours, theirs)))


def main():
    alone = {name: run(name, (1, 1, 1, 1, 1), 1) for name in (*OBJECTIVES, *ADAPTED)}
    found = []
    for name, shape, accumulate, sides in json.loads(sys.argv[1]):
        place._torus_sides = lambda _, sides=sides: sides
        many = run(name, shape, accumulate)
        for part in ("moments", "params", "metrics"):
            many[part] = farthest(many[part], alone[name][part])
        found.append(many)
    print(json.dumps(found))


main()
