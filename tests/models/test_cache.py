"""Prompts filled in and then one token at a time give what the whole text gives at once."""

from functools import partial

import jax
import numpy as np
import pytest

from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import (
    cache_size,
    decode_step,
    hidden_states,
    plain_batch,
    prefill,
)

LENGTHS, PROMPTS = np.array([20, 13, 17]), np.array([11, 1, 7])


def padded(tokens, lengths, width, side):
    """Return rows of the first `lengths` tokens, padded on one side, and their mask."""
    place = np.arange(width)[None]
    mask = place < lengths[:, None] if side == "right" else place >= width - lengths[:, None]
    rows = np.zeros((len(tokens), width), np.int32)
    for row, (text, length) in enumerate(zip(tokens, lengths, strict=True)):
        rows[row, mask[row]] = text[:length]
    return rows, mask


@pytest.mark.parametrize("side", ["right", "left"])
def test_prefill_and_decoding_equal_the_full_forward_at_every_position(
    family, side, fresh, quick_jit
):
    config = DecoderConfig.from_hf(family)
    params = fresh(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, config.vocab_size, (3, 20)).astype(np.int32)
    rows, mask = padded(tokens, LENGTHS, 20, "right")
    full = np.asarray(quick_jit(partial(hidden_states, config))(params, plain_batch(rows, mask)))

    prompt_rows, prompt_mask = padded(tokens, PROMPTS, 12, side)
    slots = cache_size(config, 20)
    batch = plain_batch(prompt_rows, prompt_mask)
    fill = quick_jit(partial(prefill, config, slots=slots))
    hidden, cache = fill(params, batch)
    assert cache.keys.shape[2] == slots
    for row in range(3):
        expected = full[row, : PROMPTS[row]]
        np.testing.assert_allclose(hidden[row][prompt_mask[row]], expected, atol=2e-5)
    step = quick_jit(partial(decode_step, config))
    for number in range(20 - PROMPTS.min()):
        # A row that has come to its end repeats its last token, which changes nothing before it.
        places = np.minimum(PROMPTS + number, LENGTHS - 1)
        now = tokens[np.arange(3), places]
        hidden, cache = step(params, cache, now, places)
        for row in np.flatnonzero(PROMPTS + number < LENGTHS):
            np.testing.assert_allclose(hidden[row], full[row, places[row]], atol=2e-5)


def test_a_cache_holds_no_more_than_the_windows_see():
    def slots(**fields):
        base = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 4}
        return cache_size(DecoderConfig.from_hf({**base, "num_attention_heads": 2, **fields}), 100)

    assert slots(model_type="mistral", sliding_window=16) == 16
    assert slots(model_type="mistral", sliding_window=400) == 100
    assert slots(model_type="mistral", sliding_window=None) == 100
    # One layer that sees everything needs everything kept.
    assert slots(model_type="cohere2", sliding_window=16) == 100
