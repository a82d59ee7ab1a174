"""Reports and studies of runs that were written by hand."""

import io
import json

import numpy as np
import pytest

from aya_jax.data.records import write_records
from aya_jax.errors import AyaError
from aya_jax.evaluation.bootstrap import interval
from aya_jax.evaluation.evaluate import summary
from aya_jax.progress import Terminal
from aya_jax.recipe.study import compare, paired_difference
from aya_jax.recipe.summary import Finished, report_of, show, write_summary

PROMPTS = [("de", "a"), ("de", "b"), ("de", "c"), ("en", "d"), ("en", "e")]
STEPS = ["base", "arbitrage_sft", "online_dpo_1"]
MODELS = ["single_teacher", *STEPS]


def answers(name, right, rewards):
    return [
        {
            "language": code,
            "prompt": prompt,
            "answers": ["x"],
            "completion": f"{name} on {prompt}",
            "correct": bool(correct),
            "right_language": True,
            "reward": reward + 1.0,
            "unused_reward": reward,
        }
        for (code, prompt), correct, reward in zip(PROMPTS, right, rewards, strict=True)
    ]


MARKED = {
    "single_teacher": answers("single", [1, 0, 0, 1, 0], [0.0, 0.0, 0.0, 0.0, 0.0]),
    "base": answers("base", [0, 0, 0, 0, 0], [-1.0, -1.0, -1.0, -1.0, -1.0]),
    "arbitrage_sft": answers("sft", [1, 1, 0, 1, 0], [1.0, 0.0, -1.0, 2.0, 0.5]),
    "online_dpo_1": answers("dpo", [1, 1, 1, 1, 1], [2.0, 2.5, 3.0, 2.0, 2.5]),
}


def make_run(path, marked=MARKED, *, seed=0):
    """A finished run: two trainings, a route and the evaluation of every model."""
    stages = ["base", "reward", "route.reward", "arbitrage_sft"]
    stages += [f"evaluate.{name}" for name in marked]
    entries = {
        name: {"fingerprint": name, "seconds": i + 0.5, "figures": {"rows": i}}
        for i, name in enumerate(stages)
    }
    entries["route.reward"]["figures"]["routing"] = {"de": {"west": 2}}
    accuracy = {"overall": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 9}, "by_language": {}}
    entries["reward"]["figures"]["held_out_accuracy"] = accuracy
    for name in stages:
        (path / "stages" / name).mkdir(parents=True)
    for name, rows in marked.items():
        write_records(path / "stages" / f"evaluate.{name}" / "records.jsonl", rows)
    curve = [{"step": 10, "loss": 2.123456789, "grad_norm": 9.0}, {"step": 20, "loss": 1.0}]
    (path / "stages" / "base" / "metrics.jsonl").write_text("\n".join(map(json.dumps, curve)))
    parents = [
        {"path": "sft.west", "fingerprint": "f", "weight": 0.25},
        {"path": "sft.east", "fingerprint": "g", "weight": 0.75},
    ]
    lineage = {"stage": "arbitrage_sft", "method": "linear", "parents": parents}
    (path / "stages" / "arbitrage_sft" / "lineage.json").write_text(json.dumps(lineage))
    (path / "config.gin").write_text("A = 1\n")
    recipe = {
        "name": "hand",
        "seed": seed,
        "stages": stages,
        "steps": STEPS,
        "opponent": "single_teacher",
    }
    (path / "run.json").write_text(json.dumps({"recipe": recipe, "stages": entries}))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def report(place):
    return report_of(Finished.open(place))


def test_figures_are_those_of_each_models_answers(report):
    assert list(report["models"]) == MODELS
    for name in MODELS:
        assert report["models"][name] == summary(MARKED[name], MARKED["single_teacher"])
    overall = {
        name: {metric: figure["overall"]["value"] for metric, figure in figures.items()}
        for name, figures in report["models"].items()
    }
    assert [overall[name]["correct"] for name in MODELS] == [0.4, 0.0, 0.6, 1.0]
    # Against zeros: the opponent against itself, all lost, two and a half of five, all won.
    assert [overall[name]["win_rate"] for name in MODELS] == [0.5, 0.0, 0.7, 1.0]


def test_the_recipe_is_told_as_it_went(report):
    assert (report["base"], report["final"]) == ("base", "online_dpo_1")
    assert (report["recipe"], report["seed"]) == ("hand", 0)
    assert report["opponent"] == "single_teacher"
    assert report["steps_of_recipe"] == ["base", "single_teacher", "arbitrage_sft", "online_dpo_1"]
    assert report["stages"][1]["name"] == "reward" and report["stages"][1]["seconds"] == 1.5
    assert report["routing"] == {"reward": {"de": {"west": 2}}}
    assert report["reward_models"]["reward"]["overall"]["value"] == 0.9
    assert report["history"] == {"base": {"loss": [[10, 2.12346], [20, 1.0]]}}
    assert report["lineage"]["arbitrage_sft"]["weights"] == [0.25, 0.75]
    assert report["lineage"]["arbitrage_sft"]["method"] == "linear"
    assert report["settings"] == "A = 1\n"


def test_samples_are_the_same_prompts_side_by_side(report):
    codes = [sample["language"] for sample in report["samples"]]
    assert codes == ["de", "de", "en", "en"]
    for sample in report["samples"]:
        texts = {name: each["text"] for name, each in sample["completions"].items()}
        ends = sample["prompt"]
        assert texts == {
            "single_teacher": f"single on {ends}",
            "base": f"base on {ends}",
            "arbitrage_sft": f"sft on {ends}",
            "online_dpo_1": f"dpo on {ends}",
        }


def test_which_prompts_are_shown_does_not_follow_from_the_answers(tmp_path, report):
    other = {name: answers("other", [0, 1, 0, 1, 0], [9.0] * 5) for name in MODELS}
    shown = report_of(Finished.open(make_run(tmp_path, other)))["samples"]
    assert [s["prompt"] for s in shown] == [s["prompt"] for s in report["samples"]]


def test_the_files_hold_the_report(tmp_path):
    page = write_summary(make_run(tmp_path / "run"))
    assert page == tmp_path / "run" / "report.html" and "online_dpo_1" in page.read_text("utf-8")
    written = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(report_of(Finished.open(tmp_path / "run"))))


def test_the_final_table_has_every_models_figures(report):
    told = io.StringIO()
    show(report, Terminal(told))
    text = told.getvalue()
    line = next(row for row in text.splitlines() if "online_dpo_1" in row and "│" in row)
    assert "100.0% [100.0, 100.0]" in line
    low, high = (
        report["models"]["online_dpo_1"]["unused_reward"]["overall"][k] for k in ("low", "high")
    )
    assert f"2.40 [{low:.2f}, {high:.2f}]" in line
    assert "hand: online_dpo_1 against single_teacher" in text


def test_what_is_no_finished_run_is_told(tmp_path):
    with pytest.raises(AyaError, match="is no run directory"):
        Finished.open(tmp_path)
    path = make_run(tmp_path / "run")
    (path / "stages" / "evaluate.base" / "records.jsonl").unlink()
    (path / "stages" / "evaluate.base").rmdir()
    with pytest.raises(AyaError, match="the run is not finished"):
        Finished.open(path)


def test_a_paired_difference_is_taken_prompt_by_prompt(place):
    run = Finished.open(place)
    figure = paired_difference(run, "unused_reward", ("online_dpo_1", "arbitrage_sft"))
    differences = np.array([1.0, 2.5, 4.0, 0.0, 2.0])
    assert figure == interval(differences, np.array([code for code, _ in PROMPTS]))
    assert figure["value"] == pytest.approx(1.9) and figure["n"] == 5
    turned = paired_difference(run, "unused_reward", ("arbitrage_sft", "online_dpo_1"))
    assert [turned[k] for k in ("low", "value", "high")] == pytest.approx(
        [-figure[k] for k in ("high", "value", "low")]
    )
    right = paired_difference(run, "correct", ("arbitrage_sft", "single_teacher"))
    assert right["value"] == pytest.approx(0.2)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three seeds: arbitrage is better, the same, and worse than the single teacher."""
    better = MARKED["single_teacher"], answers("sft", [1] * 5, [1.0] * 5)
    same = MARKED["single_teacher"], MARKED["single_teacher"]
    runs = {}
    for seed, (single, sft) in enumerate((better, same, better[::-1])):
        marked = {**MARKED, "single_teacher": single, "arbitrage_sft": sft}
        path = make_run(tmp_path_factory.mktemp(f"seed_{seed}"), marked, seed=seed)
        runs[seed] = Finished.open(path)
    return runs, compare({seed: report_of(run) for seed, run in runs.items()}, runs)


def verdicts(result):
    return {(c["claim"], c["metric"]): c["verdict"] for c in result["comparisons"]}


def test_a_claim_is_shown_in_so_many_seeds(study):
    _, result = study
    found = verdicts(result)
    claim = "Arbitrage beats a single teacher"
    assert found[claim, "unused_reward"] == "shown in 1 of 3 seeds, the opposite in 1"
    # Where nothing is different the interval is [0, 0], and neither side is shown.
    by_seed = next(
        c for c in result["comparisons"] if (c["claim"], c["metric"]) == (claim, "unused_reward")
    )
    assert [by_seed["difference"][str(s)]["value"] for s in range(3)] == [1.0, 0.0, -1.0]
    assert (by_seed["difference"]["1"]["low"], by_seed["difference"]["1"]["high"]) == (0.0, 0.0)
    assert by_seed["arms"] == ["arbitrage_sft", "single_teacher"]
    assert by_seed["seeds"]["0"]["arbitrage_sft"]["value"] == 1.0
    whole = "The whole recipe beats SFT on one teacher"
    assert found[whole, "unused_reward"] == "shown in 3 of 3 seeds"


def test_only_what_was_run_is_compared(study):
    _, result = study
    arms = {arm for c in result["comparisons"] for arm in c["arms"]}
    assert arms == {"arbitrage_sft", "single_teacher", "online_dpo_1"}
    assert {c["metric"] for c in result["comparisons"]} == {"correct", "unused_reward"}
    assert result["seeds"] == [0, 1, 2] and set(result["overall"]) == {"0", "1", "2"}
    assert result["overall"]["2"]["single_teacher"]["correct"]["value"] == 1.0


def test_seeds_are_pooled_prompt_by_prompt(study):
    runs, result = study
    pooled = result["pooled"]["arbitrage_sft"]["correct"]
    each = [[float(row["correct"]) for row in run.marked("arbitrage_sft")] for run in runs.values()]
    means = np.mean(each, axis=0)
    assert pooled["overall"]["value"] == pytest.approx(means.mean())
    assert pooled["overall"]["n"] == len(PROMPTS)
    german = [mean for mean, (code, _) in zip(means, PROMPTS, strict=True) if code == "de"]
    assert pooled["by_language"]["de"]["value"] == pytest.approx(np.mean(german))
    assert "unmerged" not in result["pooled"]


def test_models_that_are_not_merged_are_compared_by_their_mean(tmp_path):
    parts = {
        "arbitrage_sft.west": answers("west", [1, 1, 1, 0, 0], [0.0] * 5),
        "arbitrage_sft.east": answers("east", [0, 1, 0, 0, 1], [1.0] * 5),
    }
    run = Finished.open(make_run(tmp_path, {**MARKED, **parts}))
    result = compare({0: report_of(run)}, {0: run})
    claim = "Merging the clusters beats not merging them"
    (found,) = [c for c in result["comparisons"] if (c["claim"], c["metric"]) == (claim, "correct")]
    # 3 of 5 against the mean of 3 and 2 of 5.
    assert found["difference"]["0"]["value"] == pytest.approx(0.6 - 0.5)
    assert found["seeds"]["0"]["unmerged"]["value"] == pytest.approx(0.5)
    pooled = result["pooled"]["unmerged"]["correct"]["by_language"]
    assert pooled["de"]["value"] == pytest.approx((3 + 1) / 6)
    assert pooled["en"]["value"] == pytest.approx((0 + 1) / 4)


def test_a_model_is_not_compared_with_itself(tmp_path):
    marked = {**MARKED, "offline_dpo": MARKED["online_dpo_1"]}
    run = Finished.open(make_run(tmp_path, marked))
    report = {**report_of(run), "final": "offline_dpo"}
    result = compare({0: report}, {0: run})
    assert all(len(set(c["arms"])) == 2 for c in result["comparisons"])
    assert "Offline then online beats offline alone" not in {
        c["claim"] for c in result["comparisons"]
    }
