"""Every family computes what transformers computes: outputs, gradients, in both precisions.

`make_goldens.py` made the checkpoints and what transformers says of them; where torch and transformers
are installed, others are made now and compared too.
"""

import importlib.util
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints.hugging_face import load_params
from aya_jax.checkpoints.model_directory import load_config
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import hidden_states, plain_batch
from aya_jax.models.heads import logits, rewards_of_hidden, target_logprobs
from aya_jax.models.names import hf_tensors

GOLDENS = Path(__file__).with_name("goldens")
CASES = sorted(
    place.parent.name
    for place in GOLDENS.glob("*/config.json")
    if load_config(place.parent)["model_type"] != "mt5"
)
# Of outputs the absolute distance, of gradients relative to the largest of the tensor.
TOLERANCE = 1e-4
MAKER = Path(__file__).with_name("make_goldens.py")
LIVE = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "safetensors"))


def output(config, params, tokens, mask, *, dtype=jnp.float32):
    """Return float32 logits [B, T, V], or the rewards [B] of a reward model."""
    batch = plain_batch(tokens, mask > 0)
    hidden = hidden_states(config, params, batch, dtype=dtype)
    if "score" in params:
        return rewards_of_hidden(params, hidden, batch.segment_ids)
    return logits(config, params, hidden)


def mean_loss(config, params, tokens, mask):
    if "score" in params:
        return output(config, params, tokens, mask).mean()
    learnt = (mask > 0) & (np.arange(mask.shape[1]) > 0)
    batch = plain_batch(tokens, mask > 0)
    return -target_logprobs(config, params, batch, learnt).sum() / learnt.sum()


def read(place):
    """Return the config and the float32 parameters of a checkpoint."""
    config = DecoderConfig.from_hf(load_config(place), place.name)
    params = load_params(place, config, dtype=jnp.float32)
    if "score" in params:
        params["score"] = params["score"].astype(jnp.float32)
    return config, params


def far(found, golden, side=""):
    """Return the distances of outputs from transformers', those at padding left out."""
    distance = np.abs(np.asarray(found) - golden[f"{side}logits"])
    return distance if distance.ndim == 1 else distance[golden[f"{side}mask"] > 0]


def with_part(params, path, index, change):
    """Return parameters of which the part of one leaf at `index` is changed."""
    key, *rest = path
    if rest:
        return {**params, key: with_part(params[key], rest, index, change)}
    leaf = np.array(params[key])
    leaf[index] = change(leaf[index])
    return {**params, key: leaf}


@pytest.fixture(scope="module")
def run(quick_jit):
    """`output`, compiled once for all that is asked of a config."""
    return quick_jit(output, static_argnums=0, static_argnames="dtype")


def compare(place, golden, run, quick_jit):
    """Assert that a checkpoint has transformers' outputs and gradients; return what was farthest."""
    config, params = read(place)
    distances = []
    for side in ("", "left_"):
        found = run(config, params, golden[f"{side}tokens"], golden[f"{side}mask"])
        distances.append(far(found, golden, side).max())
        assert distances[-1] < TOLERANCE, f"{side or 'right_'}padded: {distances[-1]}"

    loss = quick_jit(jax.value_and_grad(partial(mean_loss, config)))
    value, gradients = loss(params, golden["tokens"], golden["mask"])
    assert float(value) == pytest.approx(float(golden["loss"]), abs=1e-5)
    worst = 0.0
    for tensor in hf_tensors(config, reward="score" in params):
        leaf = gradients
        for key in tensor.leaf:
            leaf = leaf[key]
        ours, theirs = (
            tensor.from_leaf(np.asarray(leaf)[tensor.index]),
            golden[f"grad/{tensor.name}"],
        )
        # One that is zero would say nothing of the tensor.
        assert np.abs(theirs).max() > 1e-6, tensor.name
        relative = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert relative < TOLERANCE, f"{tensor.name}: {relative}"
        worst = max(worst, relative)
    return max(distances), worst


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_checkpoint(case, run, quick_jit):
    with np.load(GOLDENS / case / "golden.npz") as golden:
        print(case, *compare(GOLDENS / case, dict(golden), run, quick_jit))


@pytest.mark.skipif(not LIVE, reason="torch, transformers and safetensors are not installed")
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_made_now(case, run, quick_jit, tmp_path):
    specification = importlib.util.spec_from_file_location("make_goldens", MAKER)
    maker = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(maker)
    place = tmp_path / case
    place.mkdir()
    shutil.copy(GOLDENS / case / "config.json", place)
    golden = maker.make(place / "config.json", place / "model.safetensors", seed=1)
    print(case, *compare(place, golden, run, quick_jit))


@pytest.mark.parametrize("case", CASES)
def test_no_tensor_is_unread(case, run):
    config, params = read(GOLDENS / case)
    with np.load(GOLDENS / case / "golden.npz") as golden:
        golden = dict(golden)
    for tensor in hf_tensors(config, reward="score" in params):
        changed = with_part(params, tensor.leaf, tensor.index, lambda part: np.roll(part, 1))
        moved = far(run(config, changed, golden["tokens"], golden["mask"]), golden)
        assert moved.max() > 10 * TOLERANCE, tensor.name


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_no_further_from_float32_than_torch_is(case, run):
    config, params = read(GOLDENS / case)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    # The scalar head stays in float32.
    rounded |= {"score": params["score"]} if "score" in params else {}
    with np.load(GOLDENS / case / "golden.npz") as golden:
        many, theirs = golden["many_tokens"], golden["bfloat16_error"]
    distances = []
    for tokens in many.reshape(-1, 3, many.shape[1]):
        exact = run(config, params, tokens, np.ones_like(tokens))
        found = run(config, rounded, tokens, np.ones_like(tokens), dtype=jnp.bfloat16)
        distances.append(np.abs(np.asarray(found) - np.asarray(exact)))
    # The largest of so many is chance, their mean is not.
    ours = np.mean(distances)
    print(case, ours, np.max(distances), theirs)
    # A twentieth for processors that sum in another order; on ours it is less in every case.
    assert ours < 1.05 * theirs[0], f"{ours} is more than {theirs[0]}"
