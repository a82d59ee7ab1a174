"""Routers and pairs on candidates made by hand."""

import collections
import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aya_jax.arbitrage.pairs import best_against_worst
from aya_jax.arbitrage.routers import best_teacher, route, routing_counts
from aya_jax.errors import AyaError


def record(name, language, **rewards):
    candidates = [
        {"model": teacher, "completion": f"{teacher} on {name}", "reward": reward}
        for teacher, reward in rewards.items()
    ]
    return {"id": name, "language": language, "prompt": f"prompt {name}", "candidates": candidates}


# b is best most often; a is in German, and has the highest mean by one answer; c did not answer all.
RECORDS = [
    record("1", "de", a=9.0, b=0.0, c=1.0),
    record("2", "de", a=1.0, b=0.5),
    record("3", "en", a=-1.0, b=0.5, c=0.0),
    record("4", "en", a=0.0, b=0.25, c=-3.0),
    record("5", "en", a=0.0, b=0.1, c=0.2),
    record("6", "fr", a=0.0, b=1.0, c=0.5),
]


def sources(routed):
    return {row["id"]: row["source"] for row in routed}


def test_the_reward_router_takes_the_highest_reward():
    routed = route(RECORDS)
    assert sources(routed) == {"1": "a", "2": "a", "3": "b", "4": "b", "5": "c", "6": "b"}
    first = RECORDS[0]
    assert routed[0] == {
        "id": "1",
        "language": "de",
        "prompt": first["prompt"],
        "completion": "a on 1",
        "source": "a",
    }
    # Of equals the first in the pool.
    assert route([record("x", "de", b=1.0, a=1.0)])[0]["source"] == "b"


def test_the_single_router_takes_the_teacher_that_is_best_most_often():
    assert best_teacher(RECORDS) == "b"
    assert set(sources(route(RECORDS, router="single")).values()) == {"b"}
    asked = route(RECORDS, router="single", teacher="c")
    assert sources(asked) == dict.fromkeys("13456", "c")
    # Of equals the first by name, whatever their order in the pool.
    assert best_teacher([record("x", "de", b=1.0, a=0.0), record("y", "de", b=0.0, a=1.0)]) == "a"


def test_the_fixed_router_takes_the_best_of_each_language():
    expected = {"1": "a", "2": "a", "3": "b", "4": "b", "5": "b", "6": "b"}
    assert sources(route(RECORDS, router="fixed")) == expected
    given_ = route(RECORDS, router="fixed", teachers={"de": "c", "fr": "a"})
    assert sources(given_) == {"1": "c", "3": "b", "4": "b", "5": "b", "6": "a"}


def test_the_random_router_takes_each_as_often_and_depends_on_the_seed():
    records = [record(str(i), "de", a=0.0, b=1.0, c=2.0) for i in range(900)]
    chosen = sources(route(records, router="random"))
    counts = collections.Counter(chosen.values())
    # Five standard deviations of a count of 900 at one third.
    assert all(abs(counts[name] - 300) < 71 for name in "abc")
    assert chosen == sources(route(records, router="random"))
    other = sources(route(records, router="random", seed=1))
    assert sum(chosen[i] == other[i] for i in chosen) < 400


@pytest.mark.parametrize("router", ["reward", "random", "single", "fixed"])
def test_neither_the_order_nor_the_company_of_records_matters(router):
    before = copy.deepcopy(RECORDS)
    whole = route(RECORDS, router=router)
    backwards = route(RECORDS[::-1], router=router)
    assert backwards == whole[::-1]
    assert before == RECORDS
    if router in ("reward", "random"):
        alone = [row for r in RECORDS for row in route([r], router=router)]
        assert alone == whole


def test_unknown_fields_travel():
    rows = [{**RECORDS[0], "kind": "x", "mine": {"a": [1]}}]
    assert route(rows)[0]["mine"] == {"a": [1]} and route(rows)[0]["kind"] == "x"
    pair = best_against_worst(rows)[0]
    assert pair["mine"] == {"a": [1]} and "candidates" not in pair and "completion" not in pair


@pytest.mark.parametrize(
    ("settings_of_test", "told"),
    [
        ({"router": "rewards"}, "unknown router 'rewards'; did you mean 'reward'"),
        ({"router": "single", "teacher": "d"}, "no candidate is from teacher 'd'; known are: a, b"),
        ({"router": "fixed", "teachers": {"de": "bb"}}, "no candidate is from teacher 'bb'"),
    ],
)
def test_what_cannot_be_routed_is_told(settings_of_test, told):
    with pytest.raises(AyaError, match=told):
        route(RECORDS, **settings_of_test)


def test_a_teacher_that_answered_none_of_these_is_told():
    with pytest.raises(AyaError, match="router 'fixed' left no record"):
        route(
            [record("1", "de", a=1.0), record("2", "en", b=1.0)],
            router="fixed",
            teachers={"de": "b", "en": "a"},
        )


def test_counts_by_language():
    assert routing_counts(route(RECORDS)) == {
        "de": {"a": 2},
        "en": {"b": 2, "c": 1},
        "fr": {"b": 1},
    }


def test_pairs_are_the_best_against_the_worst():
    pairs = best_against_worst(RECORDS)
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [
        ("a on 1", "b on 1"),
        ("a on 2", "b on 2"),
        ("b on 3", "a on 3"),
        ("b on 4", "c on 4"),
        ("c on 5", "a on 5"),
        ("b on 6", "a on 6"),
    ]
    assert (pairs[0]["chosen_reward"], pairs[0]["rejected_reward"]) == (9.0, 0.0)


def test_what_teaches_nothing_is_left_out():
    same = record("1", "de", a=2.0, b=1.0)
    for candidate in same["candidates"]:
        candidate["completion"] = "the same"
    tie = record("2", "de", a=1.0, b=1.0)
    one = record("3", "de", a=1.0)
    assert best_against_worst([same, tie, one]) == []


@given(
    rewards=st.lists(
        st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=1, max_size=5),
        min_size=1,
        max_size=6,
    ),
    min_gap=st.sampled_from([0.0, 0.25, 1.0, 10.0]),
)
@settings(max_examples=50, deadline=None)
def test_a_pair_is_there_exactly_where_the_gap_is_wide_enough(rewards, min_gap):
    rows = [
        record(str(i), "de", **{f"t{j}": r for j, r in enumerate(each)})
        for i, each in enumerate(rewards)
    ]
    pairs = {p["id"]: p for p in best_against_worst(rows, min_gap=min_gap)}
    for row, each in zip(rows, rewards, strict=True):
        gap = max(each) - min(each)
        assert (row["id"] in pairs) == (gap > min_gap)
        if row["id"] in pairs:
            pair = pairs[row["id"]]
            by_text = {c["completion"]: c["reward"] for c in row["candidates"]}
            assert by_text[pair["chosen"]] == pair["chosen_reward"] == max(each)
            assert by_text[pair["rejected"]] == pair["rejected_reward"] == min(each)
