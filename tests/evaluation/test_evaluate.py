"""Marks and figures by hand."""

import numpy as np
import pytest

from aya_jax.arbitrage.arbiter import score
from aya_jax.data import atlas
from aya_jax.data.atlas import check
from aya_jax.errors import AyaError
from aya_jax.evaluation.bootstrap import interval
from aya_jax.evaluation.evaluate import mark, summary
from aya_jax.model import load


def row(code, prompt, correct, unused, **more):
    return {
        "language": code,
        "prompt": prompt,
        "completion": "x",
        "correct": correct,
        "right_language": True,
        "unused_reward": unused,
        **more,
    }


OURS = [
    row("de", "a", True, 1.0),
    row("de", "b", False, 0.5),
    row("en", "c", True, 2.0),
    row("en", "d", True, -1.0),
]
THEIRS = [
    row("de", "a", False, 0.0),
    row("de", "b", False, 0.5),
    row("en", "c", True, 3.0),
    row("en", "d", False, -2.0),
]


def values(figures, metric):
    figure = figures[metric]
    return figure["overall"]["value"], {c: f["value"] for c, f in figure["by_language"].items()}


def test_figures_by_hand():
    figures = summary(OURS, THEIRS)
    assert set(figures) == {
        "correct",
        "right_language",
        "unused_reward",
        "win_rate",
        "checker_win_rate",
    }
    assert values(figures, "correct") == (0.75, {"de": 0.5, "en": 1.0})
    assert values(figures, "right_language") == (1.0, {"de": 1.0, "en": 1.0})
    assert values(figures, "unused_reward") == (0.625, {"de": 0.75, "en": 0.5})
    # The judge: a win and a tie; a loss and a win.
    assert values(figures, "win_rate") == (0.625, {"de": 0.75, "en": 0.5})
    # The checker: a win and a tie of two wrong answers; a tie of two right ones and a win.
    assert values(figures, "checker_win_rate") == (0.75, {"de": 0.75, "en": 0.75})
    codes = np.asarray([r["language"] for r in OURS])
    assert figures["win_rate"]["overall"] == interval(np.array([1.0, 0.5, 0.0, 1.0]), codes)
    assert all(f["overall"]["n"] == 4 for f in figures.values())


def test_the_opponents_win_rate_is_what_is_left():
    ours, theirs = summary(OURS, THEIRS), summary(THEIRS, OURS)
    for metric in ("win_rate", "checker_win_rate"):
        pairs = [(ours[metric]["overall"], theirs[metric]["overall"])]
        by = (ours[metric]["by_language"], theirs[metric]["by_language"])
        pairs += [(by[0][code], by[1][code]) for code in by[0]]
        for a, b in pairs:
            found = [a[k] for k in ("low", "value", "high")]
            assert found == pytest.approx([1 - b[k] for k in ("high", "value", "low")])


def test_against_oneself_everything_is_a_tie():
    figures = summary(OURS, OURS)
    for metric in ("win_rate", "checker_win_rate"):
        overall = figures[metric]["overall"]
        assert [overall[k] for k in ("low", "value", "high")] == [0.5, 0.5, 0.5]


def test_without_an_opponent_nothing_is_won():
    figures = summary(OURS)
    assert set(figures) == {"correct", "right_language", "unused_reward"}


def test_kinds_of_tasks_are_told_where_there_are_any():
    kinds = ("date", "date", "name", "name")
    rows = [{**r, "kind": kind} for r, kind in zip(OURS, kinds, strict=True)]
    by_kind = summary(rows)["correct"]["by_kind"]
    assert {kind: f["value"] for kind, f in by_kind.items()} == {"date": 0.5, "name": 1.0}
    assert "by_kind" not in summary(OURS)["correct"]


def test_what_is_not_marked_on_every_row_is_no_figure():
    rows = [{k: v for k, v in r.items() if k != "correct"} for r in OURS[:1]] + OURS[1:]
    figures = summary(rows, THEIRS)
    assert "correct" not in figures and "checker_win_rate" not in figures
    assert "win_rate" in figures


def test_other_prompts_are_no_comparison():
    with pytest.raises(AyaError, match="did not answer the same prompts"):
        summary(OURS, THEIRS[::-1])
    with pytest.raises(AyaError, match="did not answer the same prompts"):
        summary(OURS, THEIRS[:3])


def test_marks_by_the_checker_and_by_judges(tiny_reward_model):
    judge = load(tiny_reward_model, reward=True)
    records = atlas.build(
        split="eval", languages=("de", "ru"), kinds=("weekday_name", "month_name"), per_language=3
    )
    completions = [r["completion"] if i % 2 else "falsch" for i, r in enumerate(records)]
    marked = mark(records, completions, {"reward": judge, "unused_reward": judge})
    rewards = score(judge, records, completions)
    for record, text, reward, found in zip(records, completions, rewards, marked, strict=True):
        verdict = check(record, text)
        assert found == {
            **record,
            "completion": text,
            "correct": verdict.correct,
            "right_language": verdict.right_language,
            "reward": float(reward),
            "unused_reward": float(reward),
        }
    assert [found["correct"] for found in marked] == [bool(i % 2) for i in range(len(records))]
    # Marking changes no record.
    assert all("correct" not in record for record in records)


def test_without_a_reference_the_script_decides():
    records = [
        {"prompt": "?", "language": "ru"},
        {"prompt": "?", "language": "ru"},
        {"prompt": "?", "language": "de", "answer_language": "ru"},
        {"prompt": "?"},
    ]
    texts = ["Сегодня понедельник", "It is Monday", "понедельник", "Montag"]
    marked = mark(records, texts, {})
    assert [r.get("right_language") for r in marked] == [True, False, True, None]
    assert not any("correct" in r for r in marked)
    assert [r["completion"] for r in marked] == texts
