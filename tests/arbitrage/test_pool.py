"""A pool of models and of recorded answers."""

import gin
import pytest

from aya_jax.arbitrage.arbiter import score
from aya_jax.arbitrage.pool import answer_and_score, ask_some, open_pool, recorded_member
from aya_jax.data.records import write_records
from aya_jax.errors import AyaError
from aya_jax.generation.engine import sample
from aya_jax.model import load

PROMPTS = [
    {"id": "1", "language": "de", "prompt": "Montag", "mine": {"x": 1}},
    {"id": "2", "language": "en", "prompt": "Monday"},
    {"id": "3", "language": "ru", "prompt": "понедельник"},
]


def recorded(model, *rows):
    return [
        {"model": model, "language": code, "prompt": prompt, "completion": text}
        for code, prompt, text in rows
    ]


@pytest.fixture(autouse=True)
def _plain_gin():
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture(scope="module")
def arbiter(tiny_reward_model):
    return load(tiny_reward_model, reward=True)


@pytest.fixture
def answers(tmp_path):
    rows = recorded("gold", ("de", "Montag", "Dienstag"), ("en", "Monday", "Tuesday"))
    rows += recorded("poor", ("ru", "понедельник", "нет"), ("de", "Montag", ""))
    return write_records(tmp_path / "answers.jsonl", rows)


def test_models_and_recorded_answers_mixed(tiny_model, answers, arbiter):
    pool = open_pool([tiny_model, answers])
    assert list(pool) == ["model", "gold", "poor"]
    gin.bind_parameter("sample.max_new_tokens", 4)
    gin.bind_parameter("sample.batch_size", 4)
    rows = answer_and_score(PROMPTS, pool, arbiter)
    by_id = {row["id"]: {c["model"]: c["completion"] for c in row["candidates"]} for row in rows}
    loaded = load(tiny_model)
    texts = sample(
        loaded,
        [[{"role": "user", "content": r["prompt"]}] for r in PROMPTS],
    )
    own = {r["id"]: {"model": t} if t else {} for r, [t] in zip(PROMPTS, texts, strict=True)}
    # Nobody is made to have answered: neither who has no record of the prompt, nor who was silent.
    assert by_id == {
        "1": {**own["1"], "gold": "Dienstag"},
        "2": {**own["2"], "gold": "Tuesday"},
        "3": {**own["3"], "poor": "нет"},
    }
    for row, prompt in zip(rows, PROMPTS, strict=True):
        assert {k: v for k, v in row.items() if k != "candidates"} == prompt
        for candidate in row["candidates"]:
            expected = score(arbiter, [prompt], [candidate["completion"]])[0]
            assert candidate["reward"] == pytest.approx(float(expected), abs=1e-5)
    assert all("candidates" not in prompt for prompt in PROMPTS)


def test_a_prompt_that_nobody_answered_is_told(answers, arbiter):
    pool = open_pool({"file": answers})
    with pytest.raises(AyaError, match="record '4': no member of the pool answered it"):
        answer_and_score([*PROMPTS, {"id": "4", "prompt": "?"}], pool, arbiter)


def test_a_file_without_model_names_is_one_member(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}]
    place = write_records(tmp_path / "mine.jsonl", rows)
    assert list(open_pool([place])) == ["mine.jsonl"]
    assert list(open_pool({"friend": place})) == ["friend"]


def test_the_language_and_the_whole_conversation_are_asked_for():
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    talk = {"prompt": "sure?", "messages": [*turns, {"role": "user", "content": "sure?"}]}
    member = recorded_member(
        [
            {"language": "de", "prompt": "rot", "completion": "Farbe"},
            {"language": "en", "prompt": "rot", "completion": "decay"},
            {**talk, "completion": "yes"},
        ]
    )
    asked = [
        {"language": "en", "prompt": "rot"},
        {"language": "de", "prompt": "rot"},
        {"language": "fr", "prompt": "rot"},
        talk,
        {"prompt": "sure?"},
    ]
    assert member(asked) == ["decay", "Farbe", None, "yes", None]
    # A conversation of one turn and a prompt are the same question.
    assert member([{"language": "de", "messages": [{"role": "user", "content": "rot"}]}]) == [
        "Farbe"
    ]


def test_two_members_of_one_name_are_told(tmp_path, tiny_model, answers):
    (tmp_path / "other").mkdir()
    twin = write_records(tmp_path / "other" / "answers.jsonl", recorded("gold", ("de", "a", "b")))
    with pytest.raises(AyaError, match=r"answers.jsonl: the pool has a member called 'gold'"):
        open_pool([answers, twin])
    clash = write_records(tmp_path / "clash.jsonl", recorded("model", ("de", "a", "b")))
    with pytest.raises(AyaError, match=r"clash.jsonl: the pool has a member called 'model'"):
        open_pool([tiny_model, clash])


def test_a_prompt_recorded_twice_has_its_first_answer():
    rows = [{"language": "de", "prompt": "a", "completion": text} for text in ("first", "second")]
    assert recorded_member(rows)([{"language": "de", "prompt": "a"}]) == ["first"]


def test_a_prompt_asked_twice_is_answered_twice(arbiter):
    pool = {"gold": recorded_member([{"prompt": "a", "completion": "b"}])}
    rows = answer_and_score([{"prompt": "a"}, {"prompt": "a"}], pool, arbiter)
    assert rows[0] == rows[1] and rows[0]["candidates"][0]["completion"] == "b"


def test_an_empty_pool_is_told():
    with pytest.raises(AyaError, match="pool is empty"):
        open_pool([])


def named(name):
    return lambda records: [f"{name} on {r['prompt']}" for r in records]


def test_some_are_asked_the_same_ones_whatever_the_order():
    pool = {name: named(name) for name in ("a", "b", "c", "d")}
    prompts = [{"prompt": f"p{i}"} for i in range(60)]
    rows = ask_some(prompts, pool, members=2, seed=1)
    assert all(len(row["candidates"]) == 2 for row in rows)
    drawn = {row["prompt"]: {c["model"] for c in row["candidates"]} for row in rows}
    assert all(
        c["completion"] == f"{c['model']} on {row['prompt']}"
        for row in rows
        for c in row["candidates"]
    )
    counts = [sum(name in names for names in drawn.values()) for name in pool]
    assert min(counts) > 10  # of 30 expected: each has its turn
    again = ask_some(prompts[::-1], dict(reversed(pool.items())), members=2, seed=1)
    assert {r["prompt"]: {c["model"] for c in r["candidates"]} for r in again} == drawn
    other = ask_some(prompts, pool, members=2, seed=2)
    assert {r["prompt"]: {c["model"] for c in r["candidates"]} for r in other} != drawn
    pair = {"prompt": "p0", "chosen": "x", "rejected": "y"}
    assert ask_some([pair], pool)[0] == {**pair, "candidates": []}
