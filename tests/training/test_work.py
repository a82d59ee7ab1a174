"""What a row asks for, against counts made token by token and pair by pair."""

import jax
import numpy as np
import pytest

from aya_jax.models.t5_config import T5Config
from aya_jax.training.objectives import DPO, SFT, Reward
from aya_jax.training.work import row_work


def pairs(queries, keys, *, causal=True):
    """Whom a token sees, by the ids of documents alone."""
    same = (queries[:, :, None] == keys[:, None, :]) & (queries[:, :, None] > 0)
    return int((np.tril(same) if causal else same).sum())


def layer_weights(params):
    """The numbers in the matrices of all layers: those leaves that are stacked and not norms."""
    leaves = jax.tree_util.tree_leaves_with_path(params["layers"])
    return sum(leaf.size for path, leaf in leaves if "norm" not in jax.tree_util.keystr(path))


def by_hand(config, params, segments, mask):
    """Forward: 2 a weight and token, 4 a pair and element of all heads; three times that in training."""
    heads = config.num_attention_heads * config.head_dim
    real = int((segments > 0).sum())
    body = 2 * real * layer_weights(params)
    attention = 4 * heads * config.num_hidden_layers * pairs(segments, segments)
    logits = 2 * config.hidden_size * config.vocab_size * int(mask.sum())
    return real, 3 * (body + attention + logits)


def test_packed_rows(config, params, sft_arrays):
    arrays = sft_arrays(5)
    assert arrays["segment_ids"].max() > 1 and (arrays["segment_ids"] == 0).any()
    tokens, flops = by_hand(config, params, arrays["segment_ids"], arrays["mask"])
    assert row_work(SFT(config), arrays) == pytest.approx((tokens / 5, flops / 5))


def test_pairs_count_both_sides(config, params, pair_arrays):
    arrays = pair_arrays(6)
    sides = [
        by_hand(config, params, arrays[f"{side}_segment_ids"], arrays[f"{side}_mask"])
        for side in ("chosen", "rejected")
    ]
    tokens, flops = np.sum(sides, axis=0)
    assert row_work(DPO(config, 0.1), arrays) == pytest.approx((tokens / 6, flops / 6))


def test_a_held_reference_adds_a_forward_pass(config, pair_arrays):
    arrays = pair_arrays(6)
    alone = row_work(DPO(config, 0.1), arrays)
    both = row_work(DPO(config, 0.1, held_reference=True), arrays)
    assert both.tokens == alone.tokens
    assert both.flops == pytest.approx(alone.flops * 4 / 3)


def test_a_reward_model_has_no_logits(config, params, pair_arrays):
    arrays = pair_arrays(6)
    nothing = np.zeros(1)
    sides = [
        by_hand(config, params, arrays[f"{side}_segment_ids"], nothing)
        for side in ("chosen", "rejected")
    ]
    assert row_work(Reward(config), arrays).flops == pytest.approx(np.sum(sides, axis=0)[1] / 6)


def test_frozen_matrices_have_no_gradient(config, params, sft_arrays):
    arrays = sft_arrays(5)
    whole = row_work(SFT(config), arrays)
    adapted = row_work(SFT(config), arrays, frozen=True)
    real, learnt = int((arrays["segment_ids"] > 0).sum()), int(arrays["mask"].sum())
    spared = 2 * real * layer_weights(params) + 2 * config.hidden_size * config.vocab_size * learnt
    assert adapted.tokens == whole.tokens
    assert adapted.flops == pytest.approx(whole.flops - spared / 5)


def test_an_encoder_decoder_reads_prompts_and_answers():
    config = T5Config(
        vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=2, num_heads=2
    )
    inputs = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]], np.int32)
    answers = np.array([[1, 2, 2, 2], [1, 1, 0, 0]], np.int32)
    arrays = {
        "tokens": answers,
        "segment_ids": answers,
        "mask": answers > 0,
        "input_tokens": inputs,
        "input_segment_ids": inputs,
    }
    d, heads, layers = config.d_model, config.num_heads * config.d_kv, config.num_layers
    read, said = (inputs > 0).sum(), (answers > 0).sum()
    attention, feed = 4 * d * heads, 3 * d * config.d_ff
    seen = pairs(inputs, inputs, causal=False) + pairs(answers, answers)
    seen += pairs(answers, inputs, causal=False)
    each = 2 * (read + said) * (attention + feed) + 2 * (said + read) * 2 * d * heads
    flops = layers * (each + 4 * heads * seen) + 2 * d * config.vocab_size * said
    found = row_work(SFT(config), arrays)
    assert found == pytest.approx(((read + said) / 2, 3 * flops / 2))
