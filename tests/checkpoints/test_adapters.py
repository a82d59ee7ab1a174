"""Adapters that PEFT made give the logits that PEFT gave, and what we write PEFT reads.

See make_adapter_goldens.py. Where peft is installed the same is compared with it live.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints import hugging_face
from aya_jax.checkpoints.adapters import CONFIG, WEIGHTS, load_adapters, save_adapters
from aya_jax.checkpoints.model_directory import load_config
from aya_jax.checkpoints.safetensors import Safetensors, write_safetensors
from aya_jax.errors import AyaError
from aya_jax.models import t5
from aya_jax.models.architecture import read_config
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import hidden_states, init_params, plain_batch
from aya_jax.models.heads import logits, rewards_of_hidden
from aya_jax.models.lora import INPUTS, LoRA, init_adapters, join, merge
from aya_jax.models.t5_config import T5Config

HERE = Path(__file__).parent / "adapters"
MT5 = HERE.parents[1] / "models" / "goldens" / "mt5"
ADAPTERS = {
    "every": LoRA(3, 5, tuple(INPUTS)),
    "some": LoRA(4, 3, ("q", "o", "down"), use_rslora=True),
    "reward": LoRA(2, 4, ("v", "up")),
    "mt5": LoRA(2, 3, ("q", "v", "o", "up")),
}
PLACES = {"mt5": MT5}
LLAMA = read_config(load_config(HERE / "base"))


def config_of(name):
    return read_config(load_config(PLACES.get(name, HERE / "base")))


def base_of(name):
    """The model that an adapter is for; a reward model has a head in place of an output embedding."""
    place = PLACES.get(name, HERE / "base")
    params = hugging_face.load_params(place, config_of(name), dtype=jnp.float32)
    return {k: v for k, v in params.items() if k != "output" or name != "reward"}


@pytest.fixture(scope="module")
def recorded():
    with np.load(HERE / "recorded.npz") as file:
        return dict(file)


def outputs(config, params, tokens):
    """Logits, or the rewards of a model with a head; mT5 reads the tokens on both sides."""
    batch = plain_batch(jnp.asarray(tokens, jnp.int32), jnp.ones(tokens.shape, bool))
    if isinstance(config, T5Config):
        return logits(config, params, t5.hidden_states(config, params, batch, batch))
    hidden = hidden_states(config, params, batch)
    if "score" in params:
        return rewards_of_hidden(params, hidden, batch.segment_ids)[:, None]
    return logits(config, params, hidden)


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_peft_made_gives_what_it_recorded(name, recorded):
    config, params = config_of(name), base_of(name)
    lora, adapters = load_adapters(HERE / name, config)
    assert lora == ADAPTERS[name]
    for whole in (join(lora, params, adapters), merge(lora, params, adapters)):
        ours = outputs(config, whole, recorded["tokens"])
        np.testing.assert_allclose(ours, recorded[name], atol=1e-5)
    if name != "reward":
        assert np.abs(outputs(config, params, recorded["tokens"]) - recorded[name]).max() > 0.3


def tensors_of(directory):
    with Safetensors(directory, WEIGHTS) as files:
        return {name: files.read(name) for name in files.tensors}


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_was_read_is_written_bit_for_bit(name, tmp_path):
    config = config_of(name)
    save_adapters(tmp_path / "new", config, *load_adapters(HERE / name, config))
    ours, theirs = tensors_of(tmp_path / "new"), tensors_of(HERE / name)
    assert ours.keys() == theirs.keys()
    for tensor, array in theirs.items():
        np.testing.assert_array_equal(ours[tensor], array)
    told, expected = (
        json.loads(Path(d, CONFIG).read_text()) for d in (tmp_path / "new", HERE / name)
    )
    for field in ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "bias"):
        assert told[field] == expected[field]
    assert sorted(told["target_modules"]) == sorted(expected["target_modules"])
    # Over what an earlier attempt left.
    save_adapters(tmp_path / "new", config, *load_adapters(HERE / name, config))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("family", ["cohere", "gemma2", "mixtral"])
def test_every_family_comes_back(family, tmp_path):
    config = DecoderConfig.from_hf({**LLAMA.to_hf(), "model_type": family})
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    targets = ("q", "v", "o") if family == "mixtral" else ("k", "o", "gate", "down")
    lora = LoRA(2, 4.0, targets)
    adapters = init_adapters(lora, params, jax.random.key(0))
    adapters = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape), adapters)
    save_adapters(tmp_path, config, lora, adapters)
    again, read = load_adapters(tmp_path, config)
    assert again == lora
    jax.tree.map(np.testing.assert_array_equal, read, adapters)


def changed(directory, place, *, config=None, tensors=None):
    """A copy of an adapter with settings changed, and tensors replaced or (None) left out."""
    shutil.copytree(directory, place)
    told = json.loads((place / CONFIG).read_text())
    (place / CONFIG).write_text(json.dumps({**told, **(config or {})}))
    kept = {**tensors_of(place), **(tensors or {})}
    kept = {name: array for name, array in kept.items() if array is not None}
    shapes = {name: (array.dtype, array.shape) for name, array in kept.items()}
    with write_safetensors(place, shapes, single=WEIGHTS) as put:
        for name, array in kept.items():
            put(name, array)
    return place


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 8}},
        {"alpha_pattern": {"q_proj": 8}},
        {"layers_to_transform": [0]},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "pissa_niter_4"},
        {"some_new_kind": {"of": "LoRA"}},
    ],
)
def test_what_is_not_supported_is_told_by_name(config, tmp_path):
    place = changed(HERE / "every", tmp_path / "new", config=config)
    with pytest.raises(AyaError, match=rf"adapter_config.json: {next(iter(config))} = "):
        load_adapters(place, LLAMA)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "IA3"}, "must be the config of a LoRA"),
        ({"r": None}, "'r' must be there"),
        ({"lora_alpha": "16"}, "'lora_alpha' must be there"),
    ],
)
def test_a_config_without_what_is_needed_is_told(config, told, tmp_path):
    with pytest.raises(AyaError, match=told):
        load_adapters(changed(HERE / "every", tmp_path / "new", config=config), LLAMA)


LAYER = "base_model.model.model.layers.1"


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({f"{LAYER}.self_attn.q_proj.lora_A.weight": None}, "q_proj.lora_A.weight' is missing"),
        (
            {
                f"{LAYER}.mlp.up_proj.lora_A.weight": None,
                f"{LAYER}.mlp.up_proj.lora_B.weight": None,
            },
            "up_proj.lora_A.weight' is missing",
        ),
        (
            {f"{LAYER}.self_attn.q_proj.lora_B.weight": np.zeros((15, 3), np.float32)},
            r"q_proj.lora_B.weight' is \(15, 3\); it must be \(16, 3\)",
        ),
        (
            {"base_model.model.model.layers.2.mlp.up_proj.lora_A.weight": np.zeros(2, np.float32)},
            "layers.2.mlp.up_proj.lora_A.weight' has no place in this model",
        ),
        (
            {"base_model.model.lm_head.lora_A.weight": np.zeros((3, 16), np.float32)},
            "lm_head.lora_A.weight' has no place",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors, told, tmp_path):
    with pytest.raises(AyaError, match=told):
        load_adapters(changed(HERE / "every", tmp_path / "new", tensors=tensors), LLAMA)


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(AyaError, match=r"adapter_config.json: no such file; .* is no adapter"):
        load_adapters(tmp_path, LLAMA)
    shutil.copy(HERE / "every" / CONFIG, tmp_path)
    with pytest.raises(AyaError, match=r"adapter_model.safetensors: no such file"):
        load_adapters(tmp_path, LLAMA)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(AyaError, match=r"adapter_config.json: cannot be read"):
        load_adapters(tmp_path, LLAMA)


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_now_gives_the_same_for_what_we_write(name, recorded, tmp_path):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = config_of(name)
    lora, adapters = load_adapters(HERE / name, config)
    rng = np.random.default_rng(5)
    adapters = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), adapters
    )
    save_adapters(tmp_path, config, lora, adapters)
    kind, options = transformers.LlamaForCausalLM, {"dtype": torch.float32}
    if name == "reward":
        kind, options["num_labels"] = transformers.LlamaForSequenceClassification, 1
    if name == "mt5":
        kind = transformers.AutoModelForSeq2SeqLM
    start = kind.from_pretrained(PLACES.get(name, HERE / "base"), **options)
    model = peft.PeftModel.from_pretrained(start, tmp_path).eval()
    given = {"input_ids": torch.tensor(recorded["tokens"])}
    if name == "mt5":
        given["decoder_input_ids"] = given["input_ids"]
    with torch.no_grad():
        theirs = model(**given).logits.numpy()
    ours = outputs(config, join(lora, base_of(name), adapters), recorded["tokens"])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(theirs - recorded[name]).max() > 0.1
