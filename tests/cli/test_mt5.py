"""The verbs on a small mT5, brought in from outside; what it cannot do is said before it is loaded."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aya_jax
from aya_jax.checkpoints.model_directory import load_config
from aya_jax.checkpoints.safetensors import Safetensors, write_safetensors
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError
from aya_jax.models.architecture import hf_tensors, read_config
from aya_jax.recipe.check import check

TESTS = Path(__file__).parents[1]
# What old files have besides.
REPEATED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A Hugging Face directory with a sentencepiece model, as Aya 101 has it."""
    place = tmp_path_factory.mktemp("published") / "mt5"
    shutil.copytree(TESTS / "data" / "tokenizers" / "mt5", place)
    told = load_config(TESTS / "models" / "goldens" / "mt5")
    # A few more than the tokenizer has, as there.
    told["vocab_size"] = Tokenizer.load(place).vocab_size + 12
    (place / "config.json").write_text(json.dumps(told))
    rng = np.random.default_rng(0)
    tensors = {
        tensor.name: rng.normal(0, 0.2, tensor.shape).astype(np.float32)
        for tensor in hf_tensors(read_config(told))
    }
    tensors |= dict.fromkeys(REPEATED, tensors["shared.weight"])
    with write_safetensors(place, {n: (a.dtype, a.shape) for n, a in tensors.items()}) as put:
        for name, array in tensors.items():
            put(name, array)
    return place


def test_a_model_answers_with_what_its_logits_say(published):
    model = aya_jax.load(published)
    assert not model.is_reward_model
    prompts = ["Montag", "Was ist das? Und das?", "x"]
    settings = {"max_new_tokens": 5, "prompt_multiple": 16, "batch_size": 4}
    texts = aya_jax.generate(model, prompts, **settings)
    apply = jax.jit(model.apply)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = model.tokenizer.encode_chat([{"role": "user", "content": prompt}])
        tokens, answer = np.pad(ids, (0, 40 - len(ids)))[None], [0]
        while len(answer) < 6:
            targets = np.pad(answer, (0, 6 - len(answer)))[None]
            scores = apply(model.params, tokens, np.arange(40)[None] < len(ids), targets)
            best = int(scores[0, len(answer) - 1].argmax())
            if best in model.config.stop_ids:
                break
            answer.append(best)
        assert text == model.tokenizer.decode(answer[1:]).strip()
    drawn = {"temperature": 1.0, "seed": 3, **settings}
    together = aya_jax.generate(model, prompts, **drawn)
    assert together == [aya_jax.generate(model, [prompt], **drawn)[0] for prompt in prompts]
    assert together != texts


def test_what_an_encoder_decoder_cannot_do(published, aya, shelf, tmp_path):
    # Without parameters: nobody comes to look for them.
    bare = tmp_path / "bare"
    shutil.copytree(published, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    for verb in ("dpo", "reward"):
        out = tmp_path / verb
        status, _, error = aya(verb, "--model", bare, "--data", shelf.pairs, "--out", out)
        assert status == 1
        assert f"aya {verb}: {bare} needs a decoder, and mt5 is an encoder-decoder" in error
        assert len(error.splitlines()) == 1 and not list(tmp_path.glob(f"{verb}*"))
    given = ("--model", shelf.model, "--data", shelf.pairs, "--out", tmp_path / "dpo")
    status, _, error = aya("dpo", *given, "--reference", bare)
    assert status == 1 and "needs a decoder" in error
    asked = {"pool": (), "clusters": {}, "positions": None, "answer": 1, "evaluated": 1}
    with pytest.raises(AyaError, match="the recipe's base model needs a decoder"):
        check(
            SimpleNamespace(directory=tmp_path, inputs={"base": bare}),
            reader="base",
            max_length=8,
            max_pair_length=8,
            **asked,
        )
    model = aya_jax.load(published)
    tokens = jnp.ones((1, 2), jnp.int32)
    with pytest.raises(AyaError, match="without targets needs a decoder"):
        model.apply(model.params, tokens, tokens > 0)
    decoder = aya_jax.load(shelf.model)
    with pytest.raises(AyaError, match="only an encoder-decoder takes targets"):
        decoder.apply(decoder.params, tokens, tokens > 0, tokens)


STEPS = (
    "train.steps = 40",
    "train.batch_size = 4",
    "train.learning_rate = 1e-2",
    "train.log_every = 1",
    "train.checkpoint_every = 40",
    "lengths.max_length = 128",
)


@pytest.mark.slow
def test_sft_teaches_it_and_it_goes_out_again(published, aya, shelf, tmp_path):
    more = [word for binding in STEPS for word in ("--gin_bindings", binding)]
    out = tmp_path / "sft"
    given = ("--data", shelf.sft, *more)
    status, _, error = aya("sft", "--model", published, "--out", out, *given)
    assert status == 0, error
    curve = [json.loads(row)["loss"] for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert curve[-1] < 0.7 * curve[0]
    status, _, error = aya("generate", "--model", out, "--prompt", "Montag?")
    assert status == 0, error
    # LoRA, merging, and out again.
    lora = ("--gin_bindings", "lora.rank = 2", "--gin_bindings", "lora.base_dtype = 'int8'")
    status, _, error = aya("sft", "--model", out, "--out", tmp_path / "lora", *given, *lora)
    assert status == 0, error
    names = load_config(tmp_path / "lora")["architectures"]
    adapter = json.loads((tmp_path / "lora" / "adapter" / "adapter_config.json").read_text())
    assert (names, adapter["task_type"]) == (["MT5ForConditionalGeneration"], "SEQ_2_SEQ_LM")
    assert {"q", "o", "wi_0", "wo"} < set(adapter["target_modules"])
    merged = aya_jax.merge([out, tmp_path / "lora"], out=tmp_path / "merged")
    status, _, error = aya("convert", "aya-to-hf", merged, tmp_path / "hf")
    assert status == 0, error
    with Safetensors(tmp_path / "hf") as files, Safetensors(published) as before:
        assert set(files.tensors) == set(before.tensors) - set(REPEATED)
    ours, back = aya_jax.load(merged), aya_jax.load(tmp_path / "hf")
    assert ours.config == back.config
    assert all(
        (a == b).all()
        for a, b in zip(*(jax.tree.leaves(m.params) for m in (ours, back)), strict=True)
    )
