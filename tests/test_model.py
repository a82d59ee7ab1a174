"""`aya_jax.load`: a model directory, or a Hugging Face one, to one value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aya_jax
from aya_jax.checkpoints.hugging_face import aya_to_hf
from aya_jax.checkpoints.model_directory import load_params
from aya_jax.errors import AyaError


def test_a_hugging_face_directory_is_loaded_as_it_stands(tiny_model, tmp_path):
    aya_to_hf(tiny_model, tmp_path / "hf")
    ours, theirs = aya_jax.load(tiny_model), aya_jax.load(tmp_path / "hf")
    assert theirs.config == ours.config
    assert theirs.tokenizer.encode("a b") == ours.tokenizer.encode("a b")
    jax.tree.map(np.testing.assert_array_equal, theirs.params, ours.params)


@pytest.mark.parametrize("kind", ["aya", "hugging_face"])
def test_a_bfloat16_reward_model_keeps_its_head(kind, tiny_reward_model, tmp_path):
    place = tiny_reward_model
    if kind == "hugging_face":
        place = aya_to_hf(place, tmp_path / "hf")
    params = aya_jax.load(place, dtype=jnp.bfloat16, reward=True).params
    assert params.pop("score").dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_parameters_in_another_format_are_told(tiny_model, tmp_path):
    aya_to_hf(tiny_model, tmp_path / "hf")
    with pytest.raises(AyaError, match=r"is a Hugging Face directory; .* `aya convert hf-to-aya"):
        load_params(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(AyaError, match=r"pytorch_model.bin: only safetensors are read"):
        aya_jax.load(tmp_path / "hf")
    with pytest.raises(AyaError, match=r"pytorch_model.bin: only safetensors are read"):
        aya_jax.merge([tmp_path / "hf"], out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
