"""Tests run on the CPU, and two workers share two cores.

The models here are untrained and take a moment to build; tests that write into one copy it first.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import numpy as np
import pytest

from aya_jax.checkpoints.model_directory import save_model
from aya_jax.data import atlas
from aya_jax.data.tokenizer import train_tokenizer
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import init_params


@pytest.fixture(scope="session")
def tokenizer():
    """640 pieces, learnt from weekdays and months in all 23 languages."""
    kinds = ("weekday_name", "month_name")
    lines = atlas.text(kinds=kinds, per_language=12, cross_languages=("en", "fr"))
    return train_tokenizer(lines, vocab_size=640)


@pytest.fixture(scope="session")
def tiny_config(tokenizer):
    """Two layers of 32, with two query heads a key head."""
    return DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        logit_scale=1.0,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_id,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )


def _random_params(config, *, seed, reward_head=False):
    """Parameters large enough that no two logits are near each other."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0), reward_head=reward_head))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(leaf.dtype), shapes)


@pytest.fixture(scope="session")
def tiny_params(tiny_config):
    """The parameters of `tiny_model`, as NumPy arrays."""
    return _random_params(tiny_config, seed=0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tokenizer, tiny_config, tiny_params):
    """The directory of a language model."""
    place = tmp_path_factory.mktemp("tiny")
    (place / "tokenizer").mkdir()
    tokenizer.save(place / "tokenizer")
    return save_model(
        place / "model",
        config=tiny_config.to_hf(),
        params=tiny_params,
        lineage={"stage": "tiny", "kind": "test", "parents": []},
        tokenizer_dir=place / "tokenizer",
    )


@pytest.fixture(scope="session")
def tiny_reward_model(tiny_model, tiny_config):
    """The directory of a reward model."""
    return save_model(
        tiny_model.parent / "reward",
        config=tiny_config.to_hf(reward=True),
        params=_random_params(tiny_config, seed=1, reward_head=True),
        lineage={"stage": "tiny_reward", "kind": "test", "parents": []},
        tokenizer_dir=tiny_model,
    )
