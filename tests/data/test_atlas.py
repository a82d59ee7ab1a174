import re

import pytest
from babel import Locale

from aya_jax.data import atlas
from aya_jax.data.atlas.build import templates
from aya_jax.data.atlas.kinds import KINDS
from aya_jax.data.languages import LANGUAGES
from aya_jax.errors import AyaError

SLOTS = re.compile(r"{(\w+)}")


@pytest.fixture(scope="module")
def train():
    return atlas.build(split="train", entities=24)


@pytest.fixture(scope="module")
def held_out():
    return atlas.build(split="eval", entities=24)


def test_all_languages_and_kinds_are_in_both_splits(train, held_out):
    assert len(atlas.KINDS) >= 10
    for rows in (train, held_out):
        assert {row["language"] for row in rows} == set(LANGUAGES)
        assert {row["kind"] for row in rows} == set(atlas.KINDS)


def test_evaluation_never_occurs_in_training(train, held_out):
    learnt = {row["prompt"] for row in train}
    facts = {(row["concept"], row["language"], row["answer_language"]) for row in train}
    for row in held_out:
        assert row["prompt"] not in learnt
        assert (row["concept"], row["language"], row["answer_language"]) not in facts


def test_evaluation_never_occurs_in_plain_text(held_out):
    lines = atlas.text(entities=24)
    asked = tuple(f"{row['prompt']} " for row in held_out)
    assert not [line for line in lines if line.startswith(asked)]
    shown = {(row["prompt"], row["completion"]) for row in held_out}
    assert not shown & {tuple(line.split(": ", 1)) for line in lines if ": " in line}


def test_no_phrasing_is_shared_between_languages_or_kinds():
    # Two languages with one and the same question could put a fact in both splits.
    seen = {}
    for code in LANGUAGES:
        for kind, forms in templates(code)["kinds"].items():
            assert len(set(forms)) >= 3
            for form in forms:
                assert seen.setdefault(form, (code, kind)) == (code, kind)


def test_templates_have_their_slots_once_and_every_language():
    for code in LANGUAGES:
        texts = templates(code)
        assert set(texts["in_language"]) == set(LANGUAGES)
        assert set(texts["kinds"]) == set(atlas.KINDS)
        for name, forms in texts["kinds"].items():
            kind = atlas.KINDS[name]
            slots = set(kind.slots(kind.args(24)[0], code))
            expected = sorted(slots | ({"in_language"} if kind.cross else set()))
            for form in forms:
                assert sorted(SLOTS.findall(form)) == expected, (code, form)


def test_references_pass_their_own_check(train, held_out):
    for row in train[::3] + held_out:
        assert atlas.check(row, row["completion"]) == (True, True), row


def test_answers_are_those_of_cldr(train):
    for row in train:
        if row["kind"] == "territory_name":
            iso = row["concept"].split(":")[1]
            assert row["completion"] == Locale(row["answer_language"]).territories[iso]


def test_poor_completions_really_fail(train):
    faults = set()
    for row in train[::17]:
        for fault, completion in atlas.poor_completions(row).items():
            verdict = atlas.check(row, completion)
            assert not verdict.correct, (fault, row)
            if fault == "wrong_language":
                arg = row["concept"].split(":", 1)[1]
                others = set(LANGUAGES) - {row["answer_language"]}
                answers = KINDS[row["kind"]].answers
                assert completion in {text for code in others for text in answers(arg, code)}
            if fault == "slip":
                assert abs(len(completion) - len(row["completion"])) <= 1
            faults.add(fault)
    assert faults == {"wrong", "wrong_language", "slip", "translationese", "truncated"}


def test_right_language_tells_languages_of_one_script_apart():
    row = {"language": "ru", "answer_language": "ru", "answers": ["понедельник"]}
    assert atlas.check(row, "вторник") == (False, True)
    assert atlas.check(row, "понеділок") == (False, False)
    assert atlas.check(row, "Monday") == (False, False)
    assert atlas.check(row, "") == (False, False)
    row = {"language": "fr", "answer_language": "fr", "answers": ["lundi"]}
    assert atlas.check(row, "Montag") == (False, False)
    assert atlas.check(row, "Lundi.") == (True, True)


def test_spaces_of_numbers_do_not_matter():
    row = {"language": "fr", "answer_language": "fr", "answers": ["12\u202f345,5"]}
    assert atlas.check(row, "12 345,5").correct
    assert not atlas.check(row, "12,345.5").correct


def test_build_is_deterministic_and_balanced():
    a = atlas.build(split="train", entities=24, per_language=28, languages=["de", "ja"], seed=3)
    assert a == atlas.build(
        split="train", entities=24, per_language=28, languages=["de", "ja"], seed=3
    )
    assert [row["language"] for row in a] == ["de"] * 28 + ["ja"] * 28
    kinds = [row["kind"] for row in a if row["language"] == "de"]
    assert {kinds.count(kind) for kind in set(kinds)} == {2}


def test_misspelt_names_are_told():
    with pytest.raises(AyaError, match="did you mean 'weekday_name'"):
        atlas.build(split="train", kinds=["weekday_nam"])
    with pytest.raises(AyaError, match="unknown language 'xx'"):
        atlas.build(split="train", languages=["xx"])
