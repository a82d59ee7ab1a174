"""What a stage does with what the stages before it left."""

import io

import jax
import numpy as np
import pytest

from aya_jax.data.records import read_records, write_records
from aya_jax.model import load
from aya_jax.progress import Terminal
from aya_jax.recipe import tasks
from aya_jax.recipe.stages import Context


def context(tmp_path, **inputs):
    directory = tmp_path / "stage"
    directory.mkdir()
    line = Terminal(io.StringIO()).stage("offline_dpo.western", 1, 1)
    return Context("offline_dpo.western", directory, inputs, line, tmp_path / "events")


@pytest.mark.parametrize(("train", "count"), [(tasks.dpo, "pairs"), (tasks.sft, "examples")])
def test_without_data_the_model_stays_as_it_is(tmp_path, tiny_model, train, count):
    (tmp_path / "pairs").mkdir()
    write_records(tmp_path / "pairs" / "records.jsonl", [])
    stage = context(tmp_path, model=tiny_model, pairs=tmp_path / "pairs")
    assert train(stage, start="model", data="pairs", languages=("de",)) == {count: 0}
    made, start = load(stage.directory), load(tiny_model)
    jax.tree.map(np.testing.assert_array_equal, made.params, start.params)
    assert made.lineage["parents"][0]["fingerprint"] == start.lineage["params_fingerprint"]


def ask(tmp_path, tiny_model, answers, *, max_length=64):
    """Let recorded teachers answer the two prompts of a reward model."""
    asked = [{"language": "de", "prompt": p, "completion": "Montag"} for p in ("Eins?", "Zwei?")]
    for name, rows in (("prompts", asked), ("answers", answers)):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / "records.jsonl", rows)
    stage = context(
        tmp_path,
        reward_prompts=tmp_path / "prompts",
        base=tiny_model,
        **{"teacher.recorded": tmp_path / "answers" / "records.jsonl"},
    )
    figures = tasks.reward_answers(stage, teachers=("recorded",), max_length=max_length)
    return figures, read_records(stage.directory / "records.jsonl")


def recorded(prompt, completion, model):
    return {"language": "de", "prompt": prompt, "completion": completion, "model": model}


def test_a_teacher_may_be_called_like_a_path(tmp_path, tiny_model):
    answers = [recorded("Eins?", "Dienstag", "org/one"), recorded("Zwei?", "Juli", "../two")]
    figures, rows = ask(tmp_path, tiny_model, answers)
    assert figures == {"answers": 2, "too_long": 0}
    named = [[each["model"] for each in row["candidates"]] for row in rows]
    assert named == [["org/one"], ["../two"]]
    assert len(list((tmp_path / "stage" / "answers").iterdir())) == 2


def test_an_answer_that_cannot_be_learnt_is_left_out_and_counted(tmp_path, tiny_model):
    answers = [recorded("Eins?", "Dienstag", "a"), recorded("Zwei?", "Juli " * 64, "a")]
    figures, rows = ask(tmp_path, tiny_model, answers)
    assert figures == {"answers": 1, "too_long": 1}
    assert [len(row["candidates"]) for row in rows] == [1, 0]
    # The model's context is a limit as well.
    (tmp_path / "again").mkdir()
    answers[1]["completion"] *= 8
    figures, _ = ask(tmp_path / "again", tiny_model, answers, max_length=1 << 20)
    assert figures["too_long"] == 1
