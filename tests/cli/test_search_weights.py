"""Weights of a merge searched and models compared from the command line, against figures worked out here."""

import itertools
import json

import jax
import numpy as np
import pytest

import aya_jax
from aya_jax.checkpoints.model_directory import load_lineage, load_params
from aya_jax.data.atlas import build
from aya_jax.data.records import read_records, write_records
from aya_jax.errors import AyaError
from aya_jax.merging import trials
from aya_jax.recipe import search_weights

FIRST = ("--gin_bindings", "held_out_loss.batch_size = 4")


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# One program for all models of one shape.
APPLY = {}


def losses_of(model, records):
    """The mean loss of each completion, from the logits alone."""
    found = []
    apply = APPLY.setdefault(str(model.config), jax.jit(model.apply))
    for record in records:
        turns = [{"role": "user", "content": record["prompt"]}]
        prompt, answer = model.tokenizer.encode_answer(turns, record["completion"])
        ids = [*prompt, *answer]
        tokens = np.zeros((1, 64), np.int32)
        tokens[0, : len(ids)] = ids
        logprobs = jax.nn.log_softmax(apply(model.params, tokens, tokens > 0)[0])
        found.append(-np.mean([logprobs[p - 1, ids[p]] for p in range(len(prompt), len(ids))]))
    return np.array(found)


@pytest.fixture(scope="module")
def grid(shelf, tmp_path_factory):
    """The paper's grid of two models by their loss."""
    from aya_jax import cli

    out = tmp_path_factory.mktemp("grid") / "best"
    words = ("--models", shelf.model, shelf.other, "--records", shelf.sft, "--out", out)
    assert cli.main(["search-weights", *map(str, words), *FIRST]) == 0
    return out


def test_the_grid_is_tried_and_the_best_merge_made(shelf, grid, tmp_path):
    found = lines(grid / "trials.jsonl")
    assert len(found) == 5
    records = read_records(shelf.sft)
    for trial in found:
        merged = aya_jax.merge(
            [shelf.model, shelf.other],
            out=tmp_path / f"{trial['weights'][0]}",
            weights=trial["weights"],
        )
        expected = losses_of(aya_jax.load(merged), records)
        np.testing.assert_allclose(trial["values"], -expected, rtol=1e-4)
        assert trial["score"] == pytest.approx(-expected.mean(), rel=1e-4)
    best = max(found, key=lambda trial: trial["score"])["weights"]
    made = load_lineage(grid)
    assert [parent["weight"] for parent in made["parents"]] == best
    same = load_lineage(tmp_path / f"{best[0]}")
    assert made["params_fingerprint"] == same["params_fingerprint"]


def test_what_is_left_is_the_model_the_trials_and_the_page(grid):
    names = {path.name for path in grid.iterdir()}
    assert {"trials.jsonl", "search.json", "search.html", "lineage.json"} <= names
    assert not [name for name in names if name.startswith((".", "trial")) and "jsonl" not in name]
    assert [path.name for path in grid.parent.iterdir()] == [grid.name]
    content = json.loads((grid / "search.json").read_text())
    found = lines(grid / "trials.jsonl")
    for shown, trial in zip(content["trials"], found, strict=True):
        overall = shown["figure"]["overall"]
        assert overall["value"] == pytest.approx(trial["score"], rel=1e-5)
        assert overall["low"] <= overall["value"] <= overall["high"]
    best = max(found, key=lambda trial: trial["score"])
    equal = next(trial for trial in found if trial["weights"] == [0.5, 0.5])
    difference = content["differences"]["equal weights"]
    assert difference["overall"]["value"] == pytest.approx(best["score"] - equal["score"], abs=1e-6)
    assert set(difference["by_language"]) == {"de", "en", "ru"}


def test_merged_on_the_disk_the_trials_are_the_same(aya, shelf, grid, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "IN_MEMORY", 0)
    out = tmp_path / "best"
    words = ("--models", shelf.model, shelf.other, "--records", shelf.sft, "--out", out)
    assert aya("search-weights", *words, *FIRST)[0] == 0
    for ours, theirs in zip(lines(out / "trials.jsonl"), lines(grid / "trials.jsonl"), strict=True):
        assert {**ours, "key": ""} == {**theirs, "key": ""}
    assert not list(out.glob("*trial")) and not list(out.glob(".*"))


def test_what_was_tried_before_a_fault_is_not_tried_again(aya, shelf, tmp_path, monkeypatch):
    real, left = search_weights.evaluated, 6

    def counted(*arguments):
        evaluate = real(*arguments)

        def of(point):
            nonlocal left
            left -= 1
            if left < 0:
                raise AyaError("the power went out")
            return evaluate(point)

        return of

    monkeypatch.setattr(search_weights, "evaluated", counted)
    words = (
        *("--models", shelf.model, shelf.other, "--base", shelf.model, "--method", "ties"),
        *("--search", "cma_es", "--trials", 9, "--vary", "density", 0.2, 0.9),
        *("--evaluate", "reward", "--records", shelf.prompts, "--reward-model", shelf.reward),
    )
    assert aya("search-weights", *words, "--out", tmp_path / "broken")[0] == 1
    assert len(lines(tmp_path / "broken.partial" / "trials.jsonl")) == 6
    left = 3
    assert aya("search-weights", *words, "--out", tmp_path / "broken")[0] == 0
    left = 9
    assert aya("search-weights", *words, "--out", tmp_path / "whole")[0] == 0
    both = [(tmp_path / name / "trials.jsonl").read_bytes() for name in ("broken", "whole")]
    assert both[0] == both[1]
    found = lines(tmp_path / "whole" / "trials.jsonl")
    assert len(found) == 9
    assert all(0.2 <= trial["settings"]["density"] <= 0.9 for trial in found)
    assert len({trial["settings"]["density"] for trial in found}) == 9


def test_a_soup_by_wins_against_an_opponent(aya, shelf, tmp_path):
    out = tmp_path / "soup"
    words = (
        *("--models", shelf.model, shelf.other, "--search", "greedy", "--evaluate", "wins"),
        *("--records", shelf.prompts, "--reward-model", shelf.reward, "--opponent", shelf.model),
    )
    assert aya("search-weights", *words, "--out", out)[0] == 0
    first, second, both = lines(out / "trials.jsonl")
    assert [trial["weights"] for trial in (first, second, both)] == [[1, 0], [0, 1], [0.5, 0.5]]
    # Against itself everything is a tie.
    assert set(first["values"]) == {0.5}
    assert set(second["values"]) <= {0.0, 0.5, 1.0}


def test_by_correct_answers(aya, shelf, tmp_path):
    fields = ("language", "prompt", "answers", "kind", "concept")
    rows = build(
        split="train", languages=("de", "en", "ru"), kinds=("weekday_name",), per_language=2, seed=1
    )
    place = write_records(
        tmp_path / "asked.jsonl", [{k: v for k, v in row.items() if k in fields} for row in rows]
    )
    words = ("--models", shelf.model, shelf.other, "--records", place, "--evaluate", "correct")
    assert aya("search-weights", *words, "--search", "greedy", "--out", tmp_path / "out")[0] == 0
    for trial in lines(tmp_path / "out" / "trials.jsonl"):
        assert set(trial["values"]) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--evaluate", "reward"), "'reward' needs --reward-model"),
        (("--reward-model", "RM"), "'loss' has no use for --reward-model"),
        (("--method", "ties"), "needs a base model"),
        (("--vary", "density", "0.1"), "'linear' has no number 'density'"),
        (("--vary", "density", "much"), "--vary density: give numbers"),
        (("--search", "cma_es"), "number of trials"),
        (("--trials", "3"), "more than the 3 trials"),
    ],
)
def test_what_cannot_be_searched_is_told_in_a_line(aya, shelf, tmp_path, words, told):
    given = ("--models", shelf.model, shelf.other, "--records", shelf.sft, "--out", tmp_path / "o")
    status, _, error = aya("search-weights", *given, *words)
    assert status == 1
    assert error.startswith("aya search-weights: ") and error.count("\n") == 1
    assert told in error
    assert not list(tmp_path.iterdir())


def test_a_setting_out_of_range_is_told_before_any_trial(aya, shelf, tmp_path):
    words = (
        *("--models", shelf.model, shelf.other, "--base", shelf.model, "--method", "ties"),
        *("--records", shelf.sft, "--vary", "density", 0.5, 1.5, "--out", tmp_path / "o"),
    )
    status, _, error = aya("search-weights", *words)
    assert status == 1 and "density 1.5" in error
    assert not list(tmp_path.iterdir())


def test_compare(aya, shelf, tmp_path):
    out = tmp_path / "compared"
    words = ("--models", shelf.model, shelf.other, shelf.model, "--base", shelf.other)
    status, told, _ = aya(
        "compare", *words, "--records", shelf.sft, "--points", 3, "--out", out, *FIRST
    )
    assert status == 0 and "barrier" in told
    found = json.loads((out / "comparison.json").read_text())
    one, two = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(load_params(path))]).astype(
            np.float64
        )
        for path in (shelf.model, shelf.other)
    )
    assert found["all"]["entries"] == len(one)
    apart = np.linalg.norm(one - two)
    np.testing.assert_allclose(
        found["all"]["distance"], [[0, apart, 0], [apart, 0, apart], [0, apart, 0]], rtol=1e-5
    )
    # The second is the base itself.
    assert found["all"]["cosine"][0] == [pytest.approx(1), None, pytest.approx(1)]
    assert found["all"]["conflicts"] == 0
    records = read_records(shelf.sft)
    ends = [losses_of(aya_jax.load(path), records) for path in (shelf.model, shelf.other)]
    half = aya_jax.merge([shelf.model, shelf.other], out=tmp_path / "half")
    middle = losses_of(aya_jax.load(half), records)
    curve = found["curves"][0]
    assert [point["t"] for point in curve["points"]] == [0, 0.5, 1]
    expected = [ends[0].mean(), middle.mean(), ends[1].mean()]
    np.testing.assert_allclose([p["value"] for p in curve["points"]], expected, rtol=1e-4)
    height = max(0, middle.mean() - (ends[0].mean() + ends[1].mean()) / 2)
    assert curve["barrier"]["value"] == pytest.approx(height, abs=1e-3)
    # From a model to itself there is none.
    same = found["curves"][1]
    assert len({point["value"] for point in same["points"]}) == 1
    assert "<svg" in (out / "comparison.html").read_text()
    assert len(list(itertools.chain(out.iterdir()))) == 3


def test_compare_without_a_base_or_records(aya, shelf, tmp_path):
    out = tmp_path / "compared"
    assert aya("compare", "--models", shelf.model, shelf.other, "--out", out)[0] == 0
    found = json.loads((out / "comparison.json").read_text())
    assert set(found["all"]) == {"entries", "distance"} and found["curves"] == []
    assert aya("compare", "--models", shelf.model, "--out", tmp_path / "x")[0] == 1
