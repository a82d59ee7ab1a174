"""Training adapters: their gradients alone, on a base that stays as it is, and broken off without harm."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints.store import read_tree
from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.models.decoder import logical_axes
from aya_jax.models.lora import LoRA, adapter_axes, freeze, frozen_axes, init_adapters, join, merge
from aya_jax.sharding.mesh import device_mesh, logical_rules
from aya_jax.training.health import FINITE
from aya_jax.training.incidents import Incidents
from aya_jax.training.loop import train
from aya_jax.training.objectives import DPO, SFT, Reward
from aya_jax.training.optimizer import AdamW
from aya_jax.training.step import train_program

LORA = LoRA(2, 3.0, ("q", "k", "o", "down"))
INT8 = LoRA(2, 3.0, ("q", "k", "o", "down"), base_dtype="int8")
OPTIMIZER = AdamW(clip_norm=1e9)
SETTINGS = {
    "incidents": Incidents(Path("none")),
    "steps": 7,
    "batch_size": 4,
    "learning_rate": 0.02,
    "warmup": 0.3,
    "optimizer": AdamW(weight_decay=0.1),
    "seed": 3,
    "log_every": 1,
    "checkpoint_every": 2,
}


class Killed(Exception):
    """Nothing in the loop catches this."""


def bits(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def random_adapters(lora, params, seed=0):
    """As after some training: both factors are any numbers."""
    rng = np.random.default_rng(seed)
    adapters = init_adapters(lora, params, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), adapters)


def program_of(objective, lora, accumulate=1):
    return train_program(objective, OPTIMIZER, device_mesh(), logical_rules(), accumulate, lora)


def one_step(program, start, batch, *base, rate=0.01):
    batch = jax.device_put(batch, program.batch_sharding)
    state = program.init(jax.tree.map(jnp.array, start))
    return program.step(state, batch, jnp.float32(rate), *base)


def gradients_of(state):
    """The gradient of the first update, from the first moments that it left."""
    moments = next(part.mu for part in jax.tree.leaves(state.opt_state, is_leaf=_is_adam))
    return jax.tree.map(lambda m: np.asarray(m, np.float64) / (1 - OPTIMIZER.b1), moments)


def _is_adam(node):
    return hasattr(node, "mu")


def _of_all_parameters(objective, params, batch):
    """The mean loss with the means of all metrics, and its gradient, outside of any step."""

    def loss(params):
        total = objective(params, batch)
        return total.loss / total.count, {
            n: jnp.where(c > 0, s / c, jnp.inf) for n, (s, c) in total.metrics.items()
        }

    # Compiling well takes longer than it runs.
    quickly = {"xla_backend_optimization_level": "0"}
    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=quickly)(params)


def case(name, request):
    config = request.getfixturevalue("config")
    if name == "sft":
        batch = request.getfixturevalue("sft_arrays")(4)
        return SFT(config), request.getfixturevalue("params"), batch
    batch = request.getfixturevalue("pair_arrays")(4)
    if name == "dpo":
        return DPO(config, beta=0.3, sft_weight=0.2), request.getfixturevalue("params"), batch
    reward = Reward(config, center_coefficient=0.05, sft_weight=0.2)
    return reward, request.getfixturevalue("reward_params"), batch


@pytest.mark.parametrize("name", ["sft", "dpo", "reward"])
def test_an_update_is_that_of_the_adapters_in_the_merged_model(name, request):
    objective, params, batch = case(name, request)
    adapters = random_adapters(LORA, params)
    program = program_of(objective, LORA)
    base = jax.device_put(freeze(LORA, params), program.base_sharding)
    before = bits(base)
    state, figures = one_step(program, adapters, batch, base)
    assert jax.tree.structure(state.params) == jax.tree.structure(adapters)
    assert bits(base) == before  # nothing of it was given away, and nothing was changed
    # The merged model has the same loss, and the chain rule gives the gradient from that of its matrices.
    (_, expected), whole = _of_all_parameters(objective, merge(LORA, params, adapters), batch)
    for metric, value in expected.items():
        np.testing.assert_allclose(figures[metric], value, rtol=1e-4, atol=1e-5)
    got = gradients_of(state)
    for leaf, part in adapters["layers"]["block"].items():
        a, b = (np.asarray(part[side], np.float64) for side in ("a", "b"))
        layers, rank = len(a), a.shape[-1]
        a, b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        grad = np.asarray(whole["layers"]["block"][leaf], np.float64).reshape(
            layers, a.shape[1], b.shape[2]
        )
        products = {"a": grad @ b.transpose(0, 2, 1), "b": a.transpose(0, 2, 1) @ grad}
        for side, ours in got["layers"]["block"][leaf].items():
            theirs = LORA.scale * products[side].reshape(ours.shape)
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-5)
    if name == "reward":
        np.testing.assert_allclose(got["score"], whole["score"], rtol=1e-3, atol=1e-6)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(got)))
    np.testing.assert_allclose(figures["grad_norm"], norm, rtol=1e-5)


def test_a_held_reference_is_another_model_beside_the_base(
    config, params, make_params, pair_arrays
):
    batch, other = pair_arrays(4), make_params(8)
    held = DPO(config, beta=0.3, held_reference=True)
    kept = DPO(config, beta=0.3)
    told = {**batch, **jax.jit(held.reference)(other, batch)}
    adapters, states = random_adapters(LORA, params), []
    for objective, rows in ((kept, told), (held, batch)):
        program = program_of(objective, LORA)
        frozen = [jax.device_put(freeze(LORA, params), program.base_sharding)]
        if objective.held_reference:
            frozen.append(jax.device_put(other, program.reference_sharding))
        states.append(one_step(program, adapters, rows, *frozen))
    (state, figures), (held_state, held_figures) = states
    assert held_figures.keys() == figures.keys()
    for metric, value in figures.items():
        np.testing.assert_allclose(held_figures[metric], value, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(gradients_of(held_state)), jax.tree.leaves(gradients_of(state)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


def test_micro_batches_give_the_update_of_the_whole_batch(config, params, sft_arrays):
    batch, adapters, results = sft_arrays(4), random_adapters(INT8, params), []
    for accumulate in (1, 4):
        program = program_of(SFT(config), INT8, accumulate)
        base = jax.device_put(freeze(INT8, params), program.base_sharding)
        state, figures = one_step(program, adapters, batch, base)
        results.append((gradients_of(state), jax.tree.map(np.asarray, figures)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), *results)


@pytest.fixture(scope="module")
def arrays(sft_arrays):
    return sft_arrays(10)


class Watch:
    def __init__(self, last=None):
        self.figures, self.last = {}, last

    def __call__(self, step, figures):
        self.figures[step] = dict(figures)
        if step == self.last:
            raise Killed


@pytest.fixture(scope="module", params=[LORA, INT8], ids=["float32", "int8"])
def unbroken(request, config, params, arrays, tmp_path_factory):
    store, watch = TrainStore(tmp_path_factory.mktemp("unbroken")), Watch()
    start = jax.tree.map(jnp.array, params)
    train(SFT(config), start, arrays, store=store, observe=watch, lora=request.param, **SETTINGS)
    jax.tree.map(np.testing.assert_array_equal, start, params)
    return request.param, store, watch.figures


def test_what_was_broken_off_ends_in_the_same_bits(config, params, arrays, unbroken, tmp_path):
    lora, whole, figures = unbroken
    program = train_program(
        SFT(config), AdamW(weight_decay=0.1), device_mesh(), logical_rules(), 1, lora, FINITE
    )
    like = program.init(init_adapters(lora, params, jax.random.key(3)))
    store = TrainStore(tmp_path)
    for last in (1, 4, 5):
        with pytest.raises(Killed):
            train(
                SFT(config), params, arrays, store=store, observe=Watch(last), lora=lora, **SETTINGS
            )
    watch = Watch()
    train(SFT(config), params, arrays, store=store, observe=watch, lora=lora, **SETTINGS)
    assert store.steps() == whole.steps()
    assert bits(store.restore(None, like)[1]) == bits(whole.restore(None, like)[1])
    assert watch.figures == {step: figures[step] for step in (5, 6, 7)}
    assert program.step._cache_size() == 1


def test_it_learns_and_keeps_adapters_alone(params, unbroken):
    lora, store, figures = unbroken
    assert figures[7]["loss"] < figures[1]["loss"]
    learnt = store.load_params(7)
    fresh = init_adapters(lora, params, jax.random.key(SETTINGS["seed"]))
    assert jax.tree.map(jnp.shape, learnt) == jax.tree.map(jnp.shape, fresh)
    for name, part in learnt["layers"]["block"].items():
        for side, leaf in part.items():
            assert (leaf != fresh["layers"]["block"][name][side]).any()
    # With their moments and little else: a small part of what the model itself would need.
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves(fresh))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    kept = sum(
        leaf.nbytes
        for step in store.steps()
        for name in ("params", "rest")
        for leaf in jax.tree.leaves(_read(store, step, name))
    )
    assert 3 * trained <= kept / len(store.steps()) <= 3 * trained + 512 < whole


def _read(store, step, name):
    return read_tree(store.directory / f"step_{step:08d}", name)


def test_the_seed_decides_what_adapters_begin_with(params):
    one, same, other = (init_adapters(LORA, params, jax.random.key(seed)) for seed in (3, 3, 4))
    assert bits(one) == bits(same) != bits(other)
    matrices = [part["a"].tobytes() for part in one["layers"]["block"].values()]
    assert len(set(matrices)) == len(matrices)


def test_the_base_in_training_is_the_one_that_was_asked_for(config, params, sft_arrays):
    """In 8 bits the loss before training is that of the rounded model, not of the model itself."""
    batch, losses = sft_arrays(4), {}
    loss = jax.jit(SFT(config))
    for dtype in (None, "float32", "bfloat16", "int8"):
        lora = LoRA(1, 1.0, ("v",), base_dtype=dtype)
        adapters = init_adapters(lora, params, jax.random.key(0))
        losses[dtype] = float(loss(join(lora, freeze(lora, params), adapters), batch).loss)
    assert losses[None] == losses["float32"]
    for dtype in ("bfloat16", "int8"):
        assert 0 < abs(losses[dtype] - losses[None]) < 0.05 * losses[None]


@pytest.mark.parametrize("lora", [LORA, INT8], ids=["float32", "int8"])
def test_every_array_has_its_axes(config, params, reward_params, lora):
    for reward, tree in ((False, params), (True, reward_params)):
        axes = logical_axes(config, reward_head=reward)
        pairs = (
            (adapter_axes(lora, axes), init_adapters(lora, tree, jax.random.key(0))),
            (frozen_axes(lora, axes), freeze(lora, tree)),
        )
        for named, arrays in pairs:
            jax.tree.map(_fits, arrays, named)
        block = adapter_axes(lora, axes)["layers"]["block"]
        assert tuple(block["o"]["a"]) == ("layers", "heads", "head", None)
        assert tuple(block["o"]["b"]) == ("layers", None, "embed")
    if lora is INT8:
        scale = frozen_axes(lora, axes)["layers"]["block"]["q"].scale
        assert tuple(scale) == ("layers", None, "heads", "head")


def _fits(leaf, names):
    assert len(names) == np.ndim(leaf) or not names
    assert all(size > 1 for size, name in zip(np.shape(leaf), names, strict=True) if name)


def test_joined_parameters_are_not_copied(params):
    joined = join(LORA, params, init_adapters(LORA, params, jax.random.key(0)))
    assert joined["embedding"] is params["embedding"]
    assert joined["layers"]["block"]["q"].base is params["layers"]["block"]["q"]


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_no_layers_are_kept_in_float32_for_the_backward_pass(config, params, sft_arrays, dtype):
    lora = LoRA(2, 3.0, base_dtype=dtype)
    base, batch = freeze(lora, params), sft_arrays(4)

    def loss(adapters):
        return SFT(config)(join(lora, base, adapters), batch).loss

    adapters = init_adapters(lora, params, jax.random.key(0))
    traced = str(jax.make_jaxpr(jax.grad(loss))(adapters))
    for name in lora.targets:
        stack = ",".join(map(str, params["layers"]["block"][name].shape))
        assert f"[{stack}]" in traced and f"f32[{stack}]" not in traced
