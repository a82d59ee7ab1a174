"""A completion follows from the prompt, the model, the seed and the sample's index alone."""

import collections
import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aya_jax
from aya_jax.errors import AyaError
from aya_jax.generation.engine import sample
from aya_jax.model import load

NEW = 6
# One program for all tests but those that ask for another.
SHAPE = {"max_new_tokens": NEW, "batch_size": 4, "prompt_multiple": 32}
PROMPTS = ["Montag", "domenica?", "Какой сегодня день?", "月曜日", "a", "jeudi vendredi", "z z z"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return load(tiny_model)


def turns(text):
    return [{"role": "user", "content": text}]


def run(model, prompts=PROMPTS, **settings):
    conversations = [turns(p) for p in prompts]
    return sample(model, conversations, **{**SHAPE, **settings})


@pytest.fixture(scope="module")
def next_logits(model):
    """float64 [V]: the whole forward, no cache, at the last of `ids`."""

    @jax.jit
    def forward(tokens, mask):
        return model.apply(model.params, tokens, mask)

    def of(ids):
        tokens = np.zeros((1, 64), np.int32)
        tokens[0, : len(ids)] = ids
        mask = np.arange(64)[None] < len(ids)
        return np.asarray(forward(tokens, mask), np.float64)[0, len(ids) - 1]

    return of


@pytest.fixture(scope="module")
def greedy_answer(model, next_logits):
    """The ids that follow a prompt, each the arg-max, up to the end of turn."""

    def of(prompt):
        ids, answer = model.tokenizer.encode_chat(turns(prompt)), []
        while len(answer) < NEW:
            scores = next_logits(ids + answer)
            best, second = np.sort(scores)[::-1][:2]
            assert best - second > 1e-3  # else the arg-max were a matter of rounding
            if scores.argmax() == model.tokenizer.eos_id:
                break
            answer.append(int(scores.argmax()))
        return answer

    return of


def test_greedy_is_the_best_of_the_whole_forward_at_each_step(model, greedy_answer):
    answers = [greedy_answer(prompt) for prompt in PROMPTS]
    assert len(set(map(tuple, answers))) == len(PROMPTS)
    assert run(model) == [[model.tokenizer.decode(answer).strip()] for answer in answers]


def test_an_answer_ends_at_any_token_that_the_files_call_an_end(model, greedy_answer):
    prompt = max(PROMPTS, key=lambda text: len(greedy_answer(text)))
    ids = greedy_answer(prompt)
    end = next(place for place, token in enumerate(ids) if place and token not in ids[:place])
    config = replace(model.config, eos_token_id=(model.tokenizer.eos_id, ids[end]))
    ended = model._replace(config=config)
    assert run(ended, [prompt]) == [[model.tokenizer.decode(ids[:end]).strip()]]


def test_sampled_tokens_have_the_models_probabilities(model, next_logits):
    # The first token of many samples of one prompt, told apart by its text.
    count, temperature = 400, 0.7
    scores = next_logits(model.tokenizer.encode_chat(turns("Montag"))) / temperature
    probabilities = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    expected = collections.Counter()
    for i, p in enumerate(probabilities):
        expected[model.tokenizer.decode([i]).strip()] += p
    settings = {"temperature": temperature, "max_new_tokens": 1, "batch_size": 100}
    texts = run(model, ["Montag"], samples=count, **settings)[0]
    assert set(texts) <= set(expected)
    for text, p in expected.most_common(5):
        assert abs(texts.count(text) / count - p) < 5 * np.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "samples": 2, "seed": 5}])
def test_neither_mates_nor_order_nor_batch_size_matter(model, settings):
    whole = run(model, **settings)
    assert run(model, PROMPTS[::-1], **settings) == whole[::-1]
    assert run(model, PROMPTS[2:3], **settings) == whole[2:3]
    assert run(model, [PROMPTS[2], PROMPTS[2], PROMPTS[0]], **settings) == [
        whole[2],
        whole[2],
        whole[0],
    ]
    assert run(model, batch_size=3, **settings) == whole


def test_samples_differ_by_their_index_and_repeat_by_the_seed(model):
    settings = {"temperature": 1.0, "samples": 4}
    first = run(model, seed=1, **settings)
    assert all(len(set(texts)) > 1 for texts in first)
    assert run(model, seed=1, **settings) == first
    second = run(model, seed=2, **settings)
    assert all(a != b for a, b in zip(first, second, strict=True))
    # The third of four is the third of three.
    assert [t[:3] for t in first] == run(model, seed=1, temperature=1.0, samples=3)


def test_top_k_1_and_a_tiny_top_p_are_greedy(model):
    greedy = run(model)
    assert run(model, temperature=1.0, top_k=1) == greedy
    assert run(model, temperature=1.0, top_p=1e-6) == greedy


def test_nothing_comes_after_the_end_of_turn(model, greedy_answer):
    # Any token can be the end of the turn: take one that comes early in one answer.
    answers = [greedy_answer(prompt) for prompt in PROMPTS]
    tokenizer = copy.copy(model.tokenizer)
    tokenizer.eos_id = answers[0][2]
    cut = [
        answer[: answer.index(tokenizer.eos_id)] if tokenizer.eos_id in answer else answer
        for answer in answers
    ]
    assert len(cut[0]) <= 2 and max(map(len, cut)) == NEW
    texts = run(model._replace(tokenizer=tokenizer))
    assert texts == [[tokenizer.decode(answer).strip()] for answer in cut]


def test_a_prompt_that_leaves_no_room_is_told(model):
    room = model.config.max_position_embeddings
    long = "a b " * room
    with pytest.raises(AyaError, match=rf"prompt 2 has \d+ tokens; with 6 new .* of {room}; sho"):
        run(model, ["a", long])
    # The last token that fits is no error.
    ids = model.tokenizer.encode_chat(turns("a"))
    settings = {**SHAPE, "batch_size": 1, "max_new_tokens": room - len(ids)}
    args = (model, [turns("a")])
    assert len(sample(*args, **settings)) == 1
    with pytest.raises(AyaError, match="exceeds the context"):
        sample(*args, **{**settings, "max_new_tokens": room - len(ids) + 1})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.5),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("samples", 0),
        ("batch_size", 0),
        ("prompt_multiple", 0),
        ("max_new_tokens", 0),
    ],
)
def test_a_setting_that_means_nothing_is_told(model, setting, value):
    with pytest.raises(AyaError, match=f"sample.{setting} is {value}; it must be"):
        run(model, **{"temperature": 1.0, setting: value})


def test_nobody_is_asked_nothing(model):
    assert run(model, []) == []


def test_the_front_door(tiny_model):
    model = aya_jax.load(tiny_model, dtype="float32")
    texts = aya_jax.generate(model, PROMPTS[:3], max_new_tokens=NEW, batch_size=4)
    assert texts == [t for [t] in run(model, PROMPTS[:3])]
    # A conversation is a prompt too, and is read whole.
    talk = [*turns("Montag"), {"role": "assistant", "content": "Dienstag"}, *turns("domenica?")]
    settings = {"max_new_tokens": NEW, "batch_size": 4}
    alone, whole = aya_jax.generate(model, ["domenica?", talk], **settings)
    assert alone != whole
    assert aya_jax.generate(model, [talk], **settings) == [whole]
    assert aya_jax.generate(model, [turns("domenica?")], **settings) == [alone]
    logits = model.apply(model.params, jnp.ones((1, 5), jnp.int32), jnp.ones((1, 5), bool))
    assert logits.shape == (1, 5, model.config.vocab_size) and logits.dtype == jnp.float32
