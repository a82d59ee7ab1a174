"""The model directory: whole or absent, the same bits, and each missing part told by name."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aya_jax
from aya_jax.checkpoints.model_directory import (
    load_config,
    load_lineage,
    load_params,
    params_fingerprint,
    save_model,
)
from aya_jax.errors import AyaError


@pytest.fixture
def copy(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "copy")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_same_bits_come_back(tmp_path, tiny_model, tiny_config, tiny_params, dtype):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tiny_params)
    lineage = {"stage": "mine", "parents": ["ä"], "weights": [0.5, 0.1]}
    save_model(
        tmp_path / "model",
        config=tiny_config.to_hf(),
        params=params,
        lineage=lineage,
        tokenizer_dir=tiny_model,
    )
    loaded = load_params(tmp_path / "model")
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert ours.dtype == dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert load_config(tmp_path / "model") == tiny_config.to_hf()
    kept = load_lineage(tmp_path / "model")
    assert kept == {**lineage, "params_fingerprint": params_fingerprint(params)}
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tiny_model / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_front_door_loads_what_was_saved(tiny_model, tiny_config, tiny_params, tokenizer):
    model = aya_jax.load(tiny_model)
    assert model.config == tiny_config and not model.is_reward_model
    assert model.tokenizer.files == tokenizer.files
    half = aya_jax.load(tiny_model, dtype="bfloat16")
    for ours, theirs in zip(
        jax.tree.leaves(half.params), jax.tree.leaves(tiny_params), strict=True
    ):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours, jnp.asarray(theirs).astype(jnp.bfloat16))
    tokens = np.array([[2, 9, 10, 11]], np.int32)
    full, low = (m.apply(m.params, tokens, tokens > 0) for m in (model, half))
    assert full.dtype == low.dtype == jnp.float32
    assert full.shape == low.shape == (1, 4, tiny_config.vocab_size)


def test_reward_and_language_models_are_told_apart(tiny_model, tiny_reward_model):
    assert aya_jax.load(tiny_reward_model).is_reward_model
    with pytest.raises(AyaError, match="is a reward model, but a language model is needed"):
        aya_jax.model.load(tiny_reward_model, reward=False)
    with pytest.raises(AyaError, match="is a language model, but a reward model is needed"):
        aya_jax.model.load(tiny_model, reward=True)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "lineage.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "params.checksums.json",
    ],
)
def test_a_missing_file_is_told(copy, name):
    (copy / name).unlink()
    with pytest.raises(AyaError, match="no such file") as error:
        aya_jax.load(copy)
    assert str(copy / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["config.json", "lineage.json"])
def test_a_file_that_is_no_json_object_is_told(copy, name, content):
    (copy / name).write_bytes(content)
    with pytest.raises(AyaError) as error:
        aya_jax.load(copy)
    assert str(copy / name) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_directory_is_told(tmp_path):
    with pytest.raises(AyaError, match="no such model directory; check the path"):
        aya_jax.load(tmp_path / "nowhere")


def test_a_tokenizer_of_another_model_is_told(copy):
    config = load_config(copy)
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(AyaError, match=r"640 pieces, config\.json says vocab_size 100"):
        aya_jax.load(copy)


def test_saving_without_a_tokenizer_leaves_nothing(tmp_path, tiny_config, tiny_params):
    with pytest.raises(AyaError, match="has no tokenizer"):
        save_model(
            tmp_path / "model",
            config=tiny_config.to_hf(),
            params=tiny_params,
            lineage={},
            tokenizer_dir=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_replaced_only_if_asked(copy, tiny_config, tiny_params, tmp_path):
    new = jax.tree.map(lambda leaf: leaf + 1, tiny_params)
    arguments = {"config": tiny_config.to_hf(), "params": new, "lineage": {}, "tokenizer_dir": copy}
    with pytest.raises(AyaError, match="exists already"):
        save_model(copy, **arguments)
    assert params_fingerprint(load_params(copy)) == params_fingerprint(tiny_params)
    save_model(copy, **arguments, replace=True)
    assert params_fingerprint(load_params(copy)) == params_fingerprint(new)
    assert list(tmp_path.iterdir()) == [copy]


def test_parameters_are_read_onto_their_shardings_or_the_first_that_differs_is_told(
    tiny_model, tiny_params
):
    where = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), tiny_params)
    half = load_params(tiny_model, dtype=jnp.bfloat16, shardings=where)
    whole = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), tiny_params)
    assert params_fingerprint(half) == params_fingerprint(whole)
    with pytest.raises(
        AyaError, match=r"parameter 'score' is missing; config\.json and params/ do"
    ):
        load_params(tiny_model, shardings={**where, "score": where["embedding"]})
    where.pop("embedding")
    with pytest.raises(AyaError, match="parameter 'embedding' has no place in the model"):
        load_params(tiny_model, shardings=where)
