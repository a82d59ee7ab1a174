"""Every rematerialisation policy gives the same gradient, in as much memory as its name says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import init_params
from aya_jax.models.remat import POLICIES
from aya_jax.training.objectives import SFT

# Longer than what attention makes whole, so that its own backward pass has something to keep.
LENGTH = 640
CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=LENGTH,
)


@pytest.fixture(scope="module")
def found():
    params = init_params(CONFIG, jax.random.key(0))
    rows = np.random.default_rng(0).integers(1, 64, (1, LENGTH)).astype(np.int32)
    batch = {
        "tokens": rows,
        "positions": np.arange(LENGTH, dtype=np.int32)[None],
        "segment_ids": np.ones_like(rows),
        "mask": np.ones_like(rows, bool),
    }
    made = {}
    for remat in POLICIES:
        objective = SFT(CONFIG, remat=remat)
        gradient = jax.jit(
            jax.grad(lambda params, objective=objective: objective(params, batch).loss)
        )
        program = gradient.lower(params).compile()
        made[remat] = program(params), program.memory_analysis().temp_size_in_bytes
    return made


@pytest.mark.slow
@pytest.mark.parametrize("remat", POLICIES)
def test_the_gradient_is_that_without(found, remat):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found[remat][0],
        found["none"][0],
    )


@pytest.mark.slow
def test_what_is_kept_is_what_takes_memory(found):
    taken = {remat: size for remat, (_, size) in found.items()}
    layers, tokens = CONFIG.num_hidden_layers, LENGTH * jnp.float32.dtype.itemsize
    assert taken["full"] < taken["attention"] < taken["products"] < taken["none"]
    # The result of attention, as wide as the hidden size, and a number a head; of every layer.
    kept = layers * tokens * (CONFIG.hidden_size + CONFIG.num_attention_heads)
    assert 0.5 * kept < taken["attention"] - taken["full"] < 1.5 * kept
