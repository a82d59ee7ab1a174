"""A decoder of moments, and batches whose rows differ in how much of them is learnt."""

import jax
import numpy as np
import pytest

from aya_jax.data.examples import Example, pack, pad
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import init_params


@pytest.fixture(scope="session")
def config():
    return DecoderConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        logit_scale=0.5,
        max_position_embeddings=64,
    )


@pytest.fixture(scope="session")
def make_params(config):
    def make(seed, *, reward_head=False):
        shapes = jax.eval_shape(
            lambda: init_params(config, jax.random.key(0), reward_head=reward_head)
        )
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)

    return make


@pytest.fixture(scope="session")
def params(make_params):
    return make_params(0)


@pytest.fixture(scope="session")
def reward_params(make_params):
    return make_params(1, reward_head=True)


@pytest.fixture(scope="session")
def make_examples(config):
    """Prompts of 2 to 4 tokens, completions of 1 to 6; ids are never that of the padding."""

    def make(count, seed=0):
        rng = np.random.default_rng(seed)

        def ids(low, high):
            return rng.integers(1, config.vocab_size, rng.integers(low, high)).tolist()

        return [Example(ids(2, 5), ids(1, 7)) for _ in range(count)]

    return make


@pytest.fixture(scope="session")
def sft_arrays(make_examples):
    """Packed rows of 12 tokens."""

    def make(rows, seed=0):
        packed = pack(make_examples(3 * rows, seed), length=12)
        assert len(packed.tokens) >= rows
        return {name: array[:rows] for name, array in packed._asdict().items()}

    return make


@pytest.fixture(scope="session")
def pair_arrays(make_examples):
    """Padded pairs that share their prompts; the reference's log-probabilities are any numbers."""

    def make(pairs, seed=0):
        chosen = make_examples(pairs, seed)
        others = make_examples(pairs, seed + 1000)
        rejected = [
            Example(ours.prompt, theirs.completion)
            for ours, theirs in zip(chosen, others, strict=True)
        ]
        arrays = {}
        for side, examples in (("chosen", chosen), ("rejected", rejected)):
            rows = pad(examples, length=12)._asdict()
            arrays.update({f"{side}_{name}": array for name, array in rows.items()})
            rng = np.random.default_rng([seed, len(side)])
            arrays[f"reference_{side}"] = rng.normal(-8, 2, pairs).astype(np.float32)
        return arrays

    return make
