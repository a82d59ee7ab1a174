"""The headline says what was measured and no more; numbers are written one way."""

import pytest

from aya_jax.data.languages import LANGUAGES
from aya_jax.report import words
from aya_jax.report.headline import sentence, tiles

NAMES = {c: {"name": x.name, "direction": x.direction} for c, x in LANGUAGES.items()}


def figure(value, low, high, n=552):
    return {"value": value, "low": low, "high": high, "n": n}


WIN, LOSS, TIE = figure(0.659, 0.619, 0.697), figure(0.469, 0.457, 0.482), figure(0.5, 0.46, 0.54)


def told(judge, checker=None):
    final = {"win_rate": judge} | ({"checker_win_rate": checker} if checker else {})
    return sentence("online_dpo_3", "single_teacher", {"0": {"online_dpo_3": final}})


def test_headline_of_a_win():
    assert told(WIN) == (
        "The recipe’s final model, online DPO 3, beats the fixed opponent, single teacher, under the "
        "unused judge (wins 65.9% of 552 prompts; the 95% interval [61.9, 69.7] excludes 50%)."
    )


def test_headline_of_two_judges_that_disagree():
    text = told(WIN, LOSS)
    assert "beats the fixed opponent, single teacher, under the unused judge" in text
    assert (
        ", but loses to it on correct answers (wins 46.9% of 552 prompts; the 95% interval "
        "[45.7, 48.2] excludes 50%)." in text
    )
    assert " and beats it on correct answers" in told(WIN, WIN)


def test_headline_of_what_is_not_told_apart():
    assert "is not told apart from the fixed opponent" in told(TIE)
    assert "[46.0, 54.0] includes 50%" in told(TIE)
    for touching in (figure(0.6, 0.5, 0.7), figure(0.4, 0.3, 0.5)):
        assert "not told apart" in told(touching)


def test_headline_of_a_study_counts_the_seeds():
    seeds = {str(i): {"a": {"win_rate": f}} for i, f in enumerate((WIN, LOSS, TIE))}
    text = sentence("a", "b", seeds)
    assert "in 1 of 3 seeds and loses in 1 (wins 65.9%, 46.9%, 50.0%)" in text
    assert text.endswith("by 95% intervals that exclude 50%.")


def test_headline_without_a_rival():
    assert "no other model" in sentence("a", "a", {"0": {"a": {"correct": WIN}}})
    assert "no other model" in sentence("a", "b", {"0": {"a": {}}})


def test_names_with_braces_do_not_break_the_headline():
    text = sentence("a{them}", "b{field}{0}", {"0": {"a{them}": {"win_rate": WIN}}})
    assert "a{them}" in text and "b{field}{0}" in text


def test_tiles_show_the_final_and_the_opponent():
    seeds = {"0": {"f": {"correct": WIN, "win_rate": LOSS}, "o": {"correct": TIE}}}
    won, correct = tiles("f", "o", seeds)
    assert won["lines"] == [("", "46.9%", "[45.7, 48.2]")]
    assert correct["note"] == "o: 50.0% [46.0, 54.0]"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("arbitrage_sft", "arbitrage SFT"),
        ("online_dpo_1.west_south_asian", "online DPO 1 · west south asian"),
        ("dare_ties_merge", "DARE-TIES merge"),
        ("slerp_merge", "SLERP merge"),
        ("base", "base"),
    ],
)
def test_labels(name, shown):
    assert words.label(name) == shown


def test_numbers():
    assert words.number(-0.004) == "0.00" and words.number(0.0, sign=True) == "0.00"
    assert words.number(-1.5) == "−1.50" and words.number(1.5, 1, sign=True) == "+1.5"
    assert words.figure_text("unused_reward", figure(-0.5, -1, 0)) == "−0.50 [−1.00, 0.00]"
    assert words.difference_text("correct", figure(0.034, -0.01, 0.059)) == "+3.4 [−1.0, +5.9]"
    assert words.difference_text("reward", figure(0.034, -0.01, 0.059)) == "+0.03 [−0.01, +0.06]"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (185.2, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_times(seconds, shown):
    assert words.duration(seconds) == shown


def test_languages_and_directions():
    assert words.language_name("fa", NAMES) == "Persian"
    assert words.language_name("pt-BR", NAMES) == "Portuguese (pt-BR)"
    assert words.language_name("xx", NAMES) == "xx"
    shown = [words.direction(code, NAMES) for code in ("ar", "he-IL", "fa", "en", "und")]
    assert shown == ["rtl", "rtl", "rtl", "ltr", "auto"]
