"""mT5 computes what transformers computes, decodes as it reads, and keeps packed documents apart."""

import importlib.util
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints.hugging_face import load_params
from aya_jax.checkpoints.model_directory import load_config
from aya_jax.data.examples import Example
from aya_jax.data.seq2seq import pack_seq2seq
from aya_jax.errors import AyaError
from aya_jax.models.architecture import hf_tensors, read_config
from aya_jax.models.decoder import plain_batch
from aya_jax.models.heads import logits
from aya_jax.models.t5 import (
    decode_step,
    hidden_states,
    init_params,
    logical_axes,
    prefill,
    relative_buckets,
)
from aya_jax.training.objectives import SFT

GOLDEN = Path(__file__).with_name("goldens") / "mt5"
TOLERANCE = 1e-4
LIVE = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "safetensors"))
# google/mt5-xxl, whose config.json is also that of CohereForAI/aya-101.
AYA_101 = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "mt5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer",
    "vocab_size": 250112,
}


def read(place):
    config = read_config(load_config(place), place.name)
    return config, load_params(place, config, dtype=jnp.float32)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model():
    return read(GOLDEN)


def said(config, labels):
    """Return what the decoder goes on from: its first token, then the labels."""
    start = np.full_like(labels[:, :1], config.decoder_start_token_id)
    return np.concatenate([start, labels], axis=1)


def output(config, params, tokens, mask, start, *, dtype=jnp.float32):
    """Return float32 logits [B, T, V] after each of the decoder's tokens `start`."""
    inputs, targets = plain_batch(tokens, mask > 0), plain_batch(start, jnp.ones_like(start, bool))
    return logits(config, params, hidden_states(config, params, inputs, targets, dtype=dtype))


def objective_batch(config, tokens, mask, labels, label_mask):
    arrays = {}
    targets = said(config, labels)
    real = np.pad(label_mask > 0, ((0, 0), (1, 0)), constant_values=True)
    for side, rows in {"input_": (tokens, mask > 0), "": (targets, real)}.items():
        batch = plain_batch(*rows)
        arrays |= {f"{side}{name}": part for name, part in batch._asdict().items()}
    return {**arrays, "mask": jnp.asarray(real & (np.arange(targets.shape[1]) > 0))}


def mean_loss(config, params, batch):
    total = SFT(config)(params, batch)
    return total.loss / total.count


@pytest.fixture(scope="module")
def run(quick_jit):
    """The logits of each label, compiled once for all that is asked of a config."""
    compiled = quick_jit(output, static_argnums=0, static_argnames="dtype")

    def given(config, params, tokens, mask, labels, dtype=jnp.float32):
        start = said(config, labels)[:, :-1]
        return np.asarray(compiled(config, params, tokens, mask, start, dtype=dtype))

    return given


def compare(place, golden, run, quick_jit):
    """Assert that a checkpoint has transformers' logits, loss and gradients; return the distances."""
    config, params = read(place)
    distances = []
    for side in ("", "left_"):
        tokens, mask = golden[f"{side}tokens"], golden[f"{side}mask"]
        found = run(config, params, tokens, mask, golden["labels"])
        distances.append(np.abs(found - golden[f"{side}logits"]).max())
        assert distances[-1] < TOLERANCE, f"{side or 'right_'}padded: {distances[-1]}"
    named = ("tokens", "mask", "labels", "label_mask")
    batch = objective_batch(config, *(golden[name] for name in named))
    loss = quick_jit(jax.value_and_grad(partial(mean_loss, config)))
    value, gradients = loss(params, batch)
    assert float(value) == pytest.approx(float(golden["loss"]), abs=1e-5)
    worst = 0.0
    for tensor in hf_tensors(config):
        leaf = gradients
        for key in tensor.leaf:
            leaf = leaf[key]
        ours = tensor.from_leaf(np.asarray(leaf)[tensor.index])
        theirs = golden[f"grad/{tensor.name}"]
        # One that is zero would say nothing of the tensor.
        assert np.abs(theirs).max() > 1e-6, tensor.name
        relative = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert relative < TOLERANCE, f"{tensor.name}: {relative}"
        worst = max(worst, relative)
    assert {f"grad/{t.name}" for t in hf_tensors(config)} == {
        name for name in golden if name.startswith("grad/")
    }
    return max(distances), worst


def test_a_recorded_checkpoint(golden, run, quick_jit):
    print(*compare(GOLDEN, golden, run, quick_jit))


@pytest.mark.skipif(not LIVE, reason="torch, transformers and safetensors are not installed")
def test_a_checkpoint_made_now(run, quick_jit, tmp_path):
    specification = importlib.util.spec_from_file_location(
        "make_goldens", Path(__file__).with_name("make_goldens.py")
    )
    maker = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(maker)
    shutil.copy(GOLDEN / "config.json", tmp_path)
    made = maker.make(tmp_path / "config.json", tmp_path / "model.safetensors", seed=1)
    print(*compare(tmp_path, made, run, quick_jit))


def test_no_tensor_is_unread(golden, model, run):
    config, params = model
    before = run(config, params, golden["tokens"], golden["mask"], golden["labels"])
    for tensor in hf_tensors(config):
        changed = jax.tree.map(np.array, params)
        node = changed
        for key in tensor.leaf[:-1]:
            node = node[key]
        leaf = node[tensor.leaf[-1]]
        leaf[tensor.index] = np.roll(leaf[tensor.index], 1)
        after = run(config, changed, golden["tokens"], golden["mask"], golden["labels"])
        assert np.abs(after - before).max() > 10 * TOLERANCE, tensor.name


def test_bfloat16_is_no_further_from_float32_than_torch_is(golden, model, run):
    config, params = model
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    many, labels = golden["many_tokens"], golden["many_labels"]
    exact = run(config, params, many, np.ones_like(many), labels)
    found = run(config, rounded, many, np.ones_like(many), labels, dtype=jnp.bfloat16)
    ours = np.abs(found - exact).mean()
    print(ours, golden["bfloat16_error"])
    assert ours < golden["bfloat16_error"][0]


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 12)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_buckets_are_those_of_the_formula(buckets, distance, bidirectional):
    """By arXiv 1910.10683, section 2.1, one position at a time, in float64."""

    def bucket(relative):
        count, first = buckets, 0
        if bidirectional:
            count //= 2
            first = count if relative > 0 else 0
            far = abs(relative)
        else:
            far = max(-relative, 0)
        exact = count // 2
        if far < exact:
            return first + far
        growth = math.log(far / exact) / math.log(distance / exact) * (count - exact)
        # What is a whole number but for rounding is that number.
        return first + min(exact + math.floor(growth + 1e-9), count - 1)

    relative = np.arange(-300, 301)
    found = relative_buckets(
        relative, bidirectional=bidirectional, buckets=buckets, max_distance=distance
    )
    assert found.tolist() == [bucket(r) for r in relative.tolist()]
    assert len(set(found.tolist())) == buckets - bidirectional


@pytest.mark.parametrize("side", ["", "left_"])
def test_prefill_and_decoding_equal_the_full_forward_at_every_position(
    side, golden, model, run, quick_jit
):
    config, params = model
    tokens, mask, labels = golden[f"{side}tokens"], golden[f"{side}mask"], golden["labels"]
    assert len(set(mask.sum(1).tolist())) > 1
    full = run(config, params, tokens, mask, labels)
    given = said(config, labels)
    fill = quick_jit(partial(prefill, config, slots=labels.shape[1] + 3))
    cache = fill(params, plain_batch(tokens, mask > 0))
    step = quick_jit(partial(decode_step, config))
    head = quick_jit(partial(logits, config))
    for place in range(labels.shape[1]):
        hidden, cache = step(params, cache, given[:, place], place)
        np.testing.assert_allclose(head(params, hidden), full[:, place], atol=2e-5)


def test_packed_documents_are_as_they_are_alone(model, quick_jit):
    config, params = model
    rng = np.random.default_rng(0)
    sizes = [(3, 9), (7, 2), (5, 5), (1, 1), (9, 4), (2, 8)]
    examples = [
        Example(*(rng.integers(2, config.vocab_size, size).tolist() for size in pair))
        for pair in sizes
    ]
    pack = partial(pack_seq2seq, length=16, start_id=config.decoder_start_token_id)
    packed, apart = pack(examples), [pack([example]) for example in examples]
    assert len(packed["tokens"]) < len(examples)
    loss = quick_jit(jax.value_and_grad(lambda params, batch: SFT(config)(params, batch).loss))
    rows = {name: np.concatenate([each[name] for each in apart]) for name in packed}
    # Rows of padding alone, so that both are one program.
    empty = len(examples) - len(packed["tokens"])
    packed = {name: np.pad(array, ((0, empty), (0, 0))) for name, array in packed.items()}
    value, gradients = loss(params, packed)
    expected, expected_gradients = loss(params, rows)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max()),
        gradients,
        expected_gradients,
    )
    recomputed = quick_jit(
        jax.grad(lambda params, batch: SFT(config, remat="full")(params, batch).loss)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max()),
        recomputed(params, packed),
        gradients,
    )


def test_the_published_number_of_parameters_of_aya_101():
    config = read_config(AYA_101)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 12_921_057_280
    filled = {}
    for tensor in hf_tensors(config):
        assert np.prod(tensor.shape) == np.prod(tensor.part)
        filled.setdefault(tensor.leaf, set()).add((tensor.index, tensor.part))
    leaves = {
        tuple(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert filled.keys() == leaves.keys()
    for leaf, shape in leaves.items():
        (part,) = {part for _, part in filled[leaf]}
        count = len(filled[leaf])
        assert shape == (part if count == 1 else (count, *part))
    jax.tree.map(
        lambda leaf, spec: pytest.fail(str(spec)) if len(spec) != leaf.ndim else None,
        shapes,
        logical_axes(config),
    )


def test_a_config_comes_back_as_it_was():
    config = read_config(AYA_101)
    assert (config.stop_ids, config.decoder_start_token_id) == ((1,), 0)
    back = config.to_hf()
    assert back == {**AYA_101, "architectures": ["MT5ForConditionalGeneration"]}
    assert read_config(back) == config
    # What transformers 5 writes of the same model.
    assert read_config({**AYA_101, "tie_word_embeddings": True, "dtype": "float32"}) == config
    short = {k: v for k, v in AYA_101.items() if k not in ("num_decoder_layers", "d_kv")}
    assert read_config(short) == config


def test_an_untied_gated_t5_is_the_same_model():
    config = read_config({**AYA_101, "model_type": "t5", "tie_word_embeddings": False})
    assert replace(config, model_type="mt5") == read_config(AYA_101)
    assert config.to_hf()["architectures"] == ["T5ForConditionalGeneration"]
    assert read_config(config.to_hf()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "umt5"}, "c.json: model_type 'umt5' is not supported; did you mean 'mt5'?"),
        (
            {"model_type": "t5", "tie_word_embeddings": True},
            "c.json: a t5 with tie_word_embeddings is not supported",
        ),
        ({"feed_forward_proj": "relu"}, "c.json: feed_forward_proj 'relu' is not supported"),
        ({"quantization_config": {"bits": 8}}, "c.json: quantization_config"),
        ({"d_model": None}, "c.json: field 'd_model' is missing"),
        ({"num_heads": 0}, "c.json: num_heads must be a whole number above 0, not 0"),
        ({"relative_attention_num_buckets": 7}, "c.json: relative_attention_num_buckets must be"),
        ({"pad_token_id": -1}, "c.json: pad_token_id must be a token, not -1"),
    ],
)
def test_what_a_config_cannot_ask_for(change, message):
    with pytest.raises(AyaError) as error:
        read_config({**AYA_101, **change}, "c.json")
    assert message in str(error.value)


def test_an_encoder_decoder_is_no_reward_model():
    config = read_config(AYA_101)
    for ask in (partial(hf_tensors, config, reward=True), partial(config.to_hf, reward=True)):
        with pytest.raises(AyaError, match="scalar head"):
            ask()
