"""A score is that of its own prompt and completion, whoever shares the batch."""

import jax
import numpy as np
import pytest

from aya_jax.arbitrage.arbiter import score
from aya_jax.errors import AyaError
from aya_jax.model import load
from aya_jax.models.decoder import hidden_states, plain_batch

RECORDS = [
    {"prompt": "Welcher Tag folgt auf Montag?", "language": "de"},
    {"prompt": "a", "language": "en"},
    {"prompt": "Какой сегодня день?", "language": "ru"},
    {
        "prompt": "and then?",
        "messages": [
            {"role": "user", "content": "Monday"},
            {"role": "assistant", "content": "Tuesday"},
            {"role": "user", "content": "and then?"},
        ],
    },
    {"prompt": "月曜日の次は?", "language": "ja"},
]
TEXTS = ["Dienstag", "", "понедельник вторник", "Wednesday", "火曜日"]
SHAPE = {"batch_size": 4, "multiple": 64}


@pytest.fixture(scope="module")
def model(tiny_reward_model):
    return load(tiny_reward_model, reward=True)


@pytest.fixture(scope="module")
def scores(model):
    return score(model, RECORDS, TEXTS, **SHAPE)


def test_a_score_is_the_head_at_the_last_real_token(model, scores):
    tokenizer, head = model.tokenizer, np.asarray(model.params["score"], np.float64)
    forward = jax.jit(
        lambda tokens, mask: hidden_states(model.config, model.params, plain_batch(tokens, mask))
    )
    for record, text, found in zip(RECORDS, TEXTS, scores, strict=True):
        turns = record.get("messages", [{"role": "user", "content": record["prompt"]}])
        ids = [*tokenizer.encode_chat(turns), *tokenizer.encode(text), tokenizer.eos_id]
        tokens = np.asarray([ids + [7] * (80 - len(ids))], np.int32)
        hidden = np.asarray(forward(tokens, np.arange(80)[None] < len(ids)), np.float64)
        assert found == pytest.approx(hidden[0, len(ids) - 1] @ head, rel=1e-4, abs=1e-4)
    assert scores.dtype == np.float32 and len(set(scores.tolist())) == len(RECORDS)


def test_neither_mates_nor_order_nor_padding_matter(model, scores):
    assert score(model, RECORDS[::-1], TEXTS[::-1], **SHAPE).tolist() == scores[::-1].tolist()
    alone = score(model, RECORDS[2:3], TEXTS[2:3], **SHAPE)
    assert alone.tolist() == scores[2:3].tolist()
    wider = score(model, RECORDS, TEXTS, batch_size=3, multiple=96)
    np.testing.assert_allclose(wider, scores, rtol=1e-5, atol=1e-5)


def test_nothing_has_no_scores(model):
    assert score(model, [], []).shape == (0,)


def test_what_exceeds_the_context_is_told(model):
    with pytest.raises(AyaError, match=r"record 'x': prompt .* exceed the context of 256"):
        score(model, [{"id": "x", "prompt": "a"}], ["b c " * 300], **SHAPE)
