"""Small models on the disk in every form that is merged."""

import sys
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints.hugging_face import aya_to_hf, hf_to_aya
from aya_jax.checkpoints.model_directory import save_model
from aya_jax.checkpoints.slices import nested
from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.models.architecture import hf_tensors, read_config

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS = {
    "cohere": {"model_type": "cohere", "use_qk_norm": True},
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 2, "tie_word_embeddings": False},
}
FORMS = ("packed", "files", "hugging_face", "step")


class State(NamedTuple):
    """What a training keeps, as little as can be."""

    step: Any
    params: Any


def config_of(kind="llama", **changed):
    return read_config({**SIZES, **KINDS[kind], **changed})


def params_of(config, seed, dtype=jnp.float32):
    """Random parameters, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    shapes = {}
    for tensor in hf_tensors(config):
        shapes[tensor.leaf] = (*(i + 1 for i in tensor.index), *tensor.part)
    return nested(
        {
            leaf: np.asarray(jnp.asarray(rng.normal(size=shape), dtype))
            for leaf, shape in shapes.items()
        }
    )


def tokenizer_in(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    return folder


def make(place, form, config, params):
    """A model in a form of `FORMS`; return its folder."""
    if form == "step":
        store = TrainStore(place)
        store.save(7, State(np.int32(7), params))
        store.close()
        return place / "step_00000007"
    tokenizer = tokenizer_in(place.with_name("tokenizer"))
    packed = place if form == "packed" else place.with_name(f"{place.name}.packed")
    save_model(
        packed,
        config=config.to_hf(),
        params=params,
        lineage={"stage": place.name},
        tokenizer_dir=tokenizer,
    )
    if form != "packed":
        out = place if form == "hugging_face" else place.with_name(f"{place.name}.hf")
        # In several files.
        aya_to_hf(packed, out, max_shard_size=20_000)
        if form == "files":
            hf_to_aya(out, place)
    return place


@pytest.fixture(scope="session")
def tiny():
    """What is in this file."""
    return sys.modules[__name__]
