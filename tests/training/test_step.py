"""One update: the gradient of the mean over the whole batch, however it is cut or spread."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.models.decoder import Batch, hidden_states
from aya_jax.models.heads import logits
from aya_jax.sharding.mesh import device_mesh, logical_rules
from aya_jax.training.objectives import DPO, SFT, Reward
from aya_jax.training.optimizer import AdamW
from aya_jax.training.step import train_program

OPTIMIZER = AdamW(weight_decay=0.1, clip_norm=0.5)
RATE = 0.01


def one_step(objective, params, batch, accumulate=1):
    program = train_program(objective, OPTIMIZER, device_mesh(), logical_rules(), accumulate)
    state = program.init(jax.tree.map(jnp.array, params))
    batch = jax.device_put(batch, program.batch_sharding)
    return program.step(state, batch, jnp.float32(RATE))


def gradients_of(state):
    """The clipped gradient of the first update, from the first moments that it left."""
    moments = next(part.mu for part in jax.tree.leaves(state.opt_state, is_leaf=_is_adam))
    return jax.tree.map(lambda m: np.asarray(m) / (1 - OPTIMIZER.b1), moments)


def _is_adam(node):
    return hasattr(node, "mu")


def assert_trees_close(ours, theirs, **tolerance):
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.testing.assert_allclose(
            a, b, **tolerance, err_msg=jax.tree_util.keystr(path)
        ),
        ours,
        theirs,
    )


def test_the_first_update_is_adamw_on_the_gradient_of_the_mean(config, params, sft_arrays):
    batch = sft_arrays(4)

    def mean_loss(params):
        rows = Batch(*(jnp.asarray(batch[n]) for n in ("tokens", "positions", "segment_ids")))
        scores = jax.nn.log_softmax(logits(config, params, hidden_states(config, params, rows)))
        picked = jnp.take_along_axis(scores[:, :-1], rows.tokens[:, 1:, None], axis=-1)[..., 0]
        mask = jnp.asarray(batch["mask"])[:, 1:]
        return -(picked * mask).sum() / mask.sum()

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(params)
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
    assert norm > OPTIMIZER.clip_norm  # so that it is clipped
    state, metrics = one_step(SFT(config), params, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    clipped = jax.tree.map(lambda g: np.asarray(g, np.float64) * OPTIMIZER.clip_norm / norm, grads)
    assert_trees_close(gradients_of(state), clipped, rtol=1e-3, atol=1e-6)

    def updated(path, p, g):
        decay = 0.0 if "norm" in jax.tree_util.keystr(path) else OPTIMIZER.weight_decay
        return p - RATE * (g / (np.abs(g) + 1e-8) + decay * p)

    expected = jax.tree_util.tree_map_with_path(updated, params, clipped)
    assert_trees_close(state.params, expected, atol=2e-5)
    assert int(state.step) == 1


def objective_and_data(name, request):
    config = request.getfixturevalue("config")
    if name == "sft":
        batch = request.getfixturevalue("sft_arrays")(4)
        return SFT(config), request.getfixturevalue("params"), batch, batch["mask"]
    batch = request.getfixturevalue("pair_arrays")(4)
    if name == "dpo":
        objective = DPO(config, beta=0.3, sft_weight=0.2)
        return objective, request.getfixturevalue("params"), batch, batch["chosen_mask"]
    objective = Reward(config, center_coefficient=0.05, sft_weight=0.2)
    return objective, request.getfixturevalue("reward_params"), batch, batch["chosen_mask"]


@pytest.mark.parametrize("name", ["sft", "dpo", "reward"])
def test_micro_batches_give_the_update_of_the_whole_batch(name, request):
    objective, params, batch, learnt = objective_and_data(name, request)
    assert len(set(learnt.sum(-1))) > 1  # so that a mean of means would be another
    whole, figures = one_step(objective, params, batch)
    cut, cut_figures = one_step(objective, params, batch, accumulate=4)
    assert_trees_close(gradients_of(cut), gradients_of(whole), rtol=1e-3, atol=1e-6)
    assert_trees_close(cut.params, whole.params, atol=2e-5)
    assert cut_figures.keys() == figures.keys()
    for metric, value in figures.items():
        np.testing.assert_allclose(cut_figures[metric], value, rtol=1e-4, atol=1e-5)


def test_a_batch_without_a_learnt_token_only_decays(config, params, sft_arrays):
    batch = sft_arrays(4)
    state, metrics = one_step(SFT(config), params, {**batch, "mask": np.zeros_like(batch["mask"])})
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0

    def decayed(path, p):
        return p if "norm" in jax.tree_util.keystr(path) else p * (1 - RATE * 0.1)

    expected = jax.tree_util.tree_map_with_path(decayed, params)
    assert_trees_close(state.params, expected, rtol=1e-6)


def test_equal_arguments_share_one_program_and_it_is_compiled_once(config, params, sft_arrays):
    program = train_program(SFT(config), OPTIMIZER, device_mesh(), logical_rules())
    again = train_program(
        SFT(config), AdamW(weight_decay=0.1, clip_norm=0.5), device_mesh(), logical_rules()
    )
    assert program is again
    state = program.init(jax.tree.map(jnp.array, params))
    for step in range(3):
        batch = jax.device_put(sft_arrays(4, seed=step), program.batch_sharding)
        state, _ = program.step(state, batch, jnp.float32(RATE / (step + 1)))
    assert int(state.step) == 3 and program.step._cache_size() == 1


# Sizes of (data, fsdp, tensor, sequence, expert), micro-batches, and on the first device: the most of the state, rows.
# Of a torus all chips of which hold a part of each weight, these are gathered and their gradients scattered in two
# steps.
MESHES = {
    "data": ((8, 1, 1, 1, 1), 1, 1.0, 1),
    "fsdp": ((1, 8, 1, 1, 1), 1, 0.3, 1),
    "fsdp of a torus": ((1, 8, 1, 1, 1), 1, 0.3, 1),
    "tensor": ((1, 1, 2, 1, 1), 1, 0.7, 8),
    "all": ((2, 2, 2, 1, 1), 1, 0.5, 2),
    "accumulated": ((4, 2, 1, 1, 1), 2, 0.7, 1),
    "sequence": ((1, 1, 1, 4, 1), 1, 1.0, 8),
    "sequence and all": ((1, 2, 2, 2, 1), 2, 0.4, 4),
    "expert": ((1, 1, 1, 1, 4), 1, 0.6, 8),
    "expert and all": ((1, 2, 2, 1, 2), 2, 0.21, 4),
}
SPREAD = [
    *(("sft", mesh) for mesh in ("data", "fsdp", "tensor", "all", "accumulated")),
    *((objective, "fsdp of a torus") for objective in ("sft", "lora")),
    *((objective, "sequence and all") for objective in ("sft", "experts", "dpo")),
    ("dpo, reference held", "accumulated"),
    ("sft", "sequence"),
    *(("experts", mesh) for mesh in ("fsdp", "expert", "expert and all")),
    *((objective, mesh) for objective in ("dpo", "reward") for mesh in ("tensor", "all")),
    ("lora", "all"),
    ("lora on experts", "expert and all"),
]


@pytest.fixture(scope="module")
def spread():
    """What three steps on virtual devices made, set against one device's."""
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false "
        "--xla_backend_optimization_level=0"  # eighteen programs are compiled and run for a moment
    )
    jobs = [(objective, *MESHES[mesh][:2], 3 * ("torus" in mesh)) for objective, mesh in SPREAD]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("spread_steps.py")), json.dumps(jobs)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(SPREAD, json.loads(done.stdout), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "mesh"), SPREAD)
def test_many_devices_give_the_update_of_one(spread, objective, mesh):
    found = spread[objective, mesh]
    assert found["moments"] < 1e-7 and found["params"] < 2e-5 and found["metrics"] < 1e-5
    # And not by leaving everything on every device.
    _, _, share, rows = MESHES[mesh]
    assert found["share of the state"] <= share and found["rows"] == rows
