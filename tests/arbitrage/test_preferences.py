"""Pairs for reward models: the chosen one is right, the rejected one is not."""

import pytest

from aya_jax.arbitrage.preferences import FAULTS, preference_pairs
from aya_jax.data import atlas
from aya_jax.data.atlas import check
from aya_jax.errors import AyaError


@pytest.fixture(scope="module")
def records():
    return atlas.build(split="train", languages=("de", "en", "ru", "zh"), per_language=30)


@pytest.fixture(scope="module")
def pairs(records):
    return preference_pairs(records, per_record=len(FAULTS))


def test_every_fault_is_made_and_the_checker_agrees(records, pairs):
    by_id = {record["id"]: record for record in records}
    seen = {}
    for pair in pairs:
        record = by_id[pair["id"]]
        assert pair["chosen"] == record["completion"] and check(record, pair["chosen"]).correct
        assert not check(record, pair["rejected"]).correct
        kept = {k: v for k, v in record.items() if k != "completion"}
        assert {k: v for k, v in pair.items() if k not in ("chosen", "rejected", "fault")} == kept
        seen.setdefault(pair["fault"], set()).add(record["language"])
    assert set(seen) == set(FAULTS)
    assert all(codes == {"de", "en", "ru", "zh"} for codes in seen.values())


def test_a_fault_is_what_it_is_called(records, pairs):
    by_id = {record["id"]: record for record in records}
    in_language = []
    for pair in pairs:
        record, text = by_id[pair["id"]], pair["rejected"]
        if pair["fault"] == "truncated":
            assert record["completion"].startswith(text) and len(text) < len(record["completion"])
        elif pair["fault"] == "translationese":
            assert text.endswith(record["completion"]) and text != record["completion"]
        elif pair["fault"] == "slip":
            assert abs(len(text) - len(record["completion"])) <= 1
        elif pair["fault"] == "wrong" and any(ch.isalpha() for ch in text):
            in_language.append(check(record, text).right_language)
    # A few names look foreign to the checker; most do not.
    assert sum(in_language) > 0.9 * len(in_language) > 0


def test_so_many_a_record_and_the_draw_is_its_own(records):
    few = preference_pairs(records, per_record=2, seed=3)
    counts = {}
    for pair in few:
        counts[pair["id"]] = counts.get(pair["id"], 0) + 1
    assert max(counts.values()) == 2 and len(counts) == len(records)
    assert preference_pairs(records, per_record=2, seed=3) == few
    assert preference_pairs(records[::-1], per_record=2, seed=3) != few
    assert sorted(map(repr, preference_pairs(records[::-1], per_record=2, seed=3))) == sorted(
        map(repr, few)
    )
    assert preference_pairs(records, per_record=2, seed=4) != few
    assert {p["fault"] for p in preference_pairs(records, faults=("slip",))} == {"slip"}


def test_an_unknown_fault_is_told(records):
    with pytest.raises(AyaError, match=r"faults.*'slips'; did you mean 'slip'"):
        preference_pairs(records, faults=("slips",))


def test_poor_answers_of_models_are_rejected_and_good_ones_are_not(records):
    record = records[0]
    texts = ["falsch", record["completion"], "falsch", "", f" {record['completion']}. "]
    asked = {**record, "candidates": [{"model": "m", "completion": t} for t in texts]}
    pairs = preference_pairs([asked], per_record=0)
    assert [(p["chosen"], p["rejected"], p["fault"]) for p in pairs] == [
        (record["completion"], "falsch", "model")
    ]
    assert "candidates" not in pairs[0]


OWN = [
    {"prompt": f"{code} {i}", "language": code, "completion": f"{code} answer {i} of some words"}
    for code in ("de", "en")
    for i in range(6)
]


def test_own_records_without_a_checker_borrow_from_others():
    pairs = preference_pairs(OWN, per_record=9)
    faults = {p["fault"] for p in pairs}
    assert faults == {"wrong", "wrong_language", "truncated"}
    of = {r["completion"]: r["language"] for r in OWN}
    for pair in pairs:
        assert pair["chosen"] != pair["rejected"]
        if pair["fault"] == "wrong":
            assert of[pair["rejected"]] == pair["language"]
        elif pair["fault"] == "wrong_language":
            assert of[pair["rejected"]] != pair["language"]
        else:
            assert pair["rejected"] == pair["chosen"][: len(pair["rejected"])]


def test_another_answer_to_the_same_prompt_is_not_wrong():
    # Three teachers answered each of two prompts: none of their answers is wrong for its prompt.
    rows = [
        {"prompt": f"p{i}", "language": "de", "completion": f"teacher {t} on {i}"}
        for i in range(2)
        for t in range(3)
    ]
    for seed in range(20):
        for pair in preference_pairs(rows, faults=("wrong",), seed=seed):
            assert pair["rejected"][-1] != pair["prompt"][-1]


def test_a_pair_stays_as_it_is():
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "mine": 1}
    assert preference_pairs([pair]) == [pair]
    assert preference_pairs([pair, *OWN])[0] == pair


def test_one_record_alone_has_nobody_to_borrow_from():
    only = {"prompt": "a", "language": "de", "completion": "eins zwei drei vier"}
    assert [p["fault"] for p in preference_pairs([only])] == ["truncated"]


def test_a_prompt_alone_teaches_nothing_and_is_told():
    good = {"prompt": "Giorno?", "language": "it", "completion": "lunedì"}
    with pytest.raises(AyaError, match="'Mese\\?': a reward model learns from"):
        preference_pairs([good, {"prompt": "Mese?", "language": "it"}])
