"""Every training verb, and generation, on small models of other families, brought in from outside."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from aya_jax.checkpoints.hugging_face import load_params
from aya_jax.checkpoints.model_directory import load_config
from aya_jax.checkpoints.safetensors import write_safetensors
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.models.config import DecoderConfig
from aya_jax.models.names import hf_tensors

TESTS = Path(__file__).parents[1]
# The shape of a model, and whose tokenizer it speaks.
FAMILIES = {
    "llama": "llama3",
    "mixtral": "mixtral",
    "gemma2": "gemma2",
}


@pytest.fixture(params=FAMILIES, scope="module")
def published(request, tmp_path_factory):
    """A Hugging Face directory in bfloat16, with a tokenizer and a chat template of its family."""
    place = tmp_path_factory.mktemp("published") / request.param
    shutil.copytree(TESTS / "data" / "tokenizers" / FAMILIES[request.param], place)
    told = load_config(TESTS / "models" / "goldens" / request.param)
    told |= {"vocab_size": Tokenizer.load(place).vocab_size, "max_position_embeddings": 256}
    (place / "config.json").write_text(json.dumps(told))
    tensors = hf_tensors(DecoderConfig.from_hf(told))
    rng = np.random.default_rng(0)
    plan = {tensor.name: (np.dtype("bfloat16"), tensor.shape) for tensor in tensors}
    with write_safetensors(place, plan) as put:
        for tensor in tensors:
            put(tensor.name, rng.normal(0, 0.2, tensor.shape).astype("bfloat16"))
    return place


ROOM = ("--gin_bindings", "lengths.max_length = 192", "--gin_bindings", "lengths.multiple = 192")


@pytest.mark.slow
def test_verbs_take_a_published_directory_as_it_stands(aya, shelf, published, tmp_path):
    status, told, error = aya("generate", "--model", published, "--prompt", "Montag?")
    assert status == 0, error
    for verb, data in (("sft", shelf.sft), ("dpo", shelf.pairs), ("reward", shelf.pairs)):
        out = tmp_path / verb
        given = ("--model", published, "--data", data, "--out", out, *ROOM)
        status, told, error = aya(verb, *given)
        assert status == 0, error
        assert "loss" in told
    # What was trained goes out again, with the tokenizer it came with.
    status, _, error = aya("convert", "aya-to-hf", tmp_path / "dpo", tmp_path / "out")
    assert status == 0, error
    told, before = load_config(tmp_path / "out"), load_config(published)
    assert {**before, **told, "torch_dtype": 0} == {**told, "torch_dtype": 0}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (published / name).read_bytes()
    config = DecoderConfig.from_hf(told)
    trained, start = (load_params(place, config) for place in (tmp_path / "out", published))
    assert jax.tree.structure(trained) == jax.tree.structure(start)
    moved = jax.tree.map(lambda a, b: bool((a != b.astype(a.dtype)).any()), trained, start)
    assert all(jax.tree.leaves(moved))
    assert load_config(tmp_path / "reward")["architectures"][0].endswith("SequenceClassification")
