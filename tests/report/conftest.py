"""A report as `summary.report_of` makes it, and a study's as `study.compare` does, without a run."""

import copy

import numpy as np
import pytest

from aya_jax.data.languages import LANGUAGES
from aya_jax.evaluation.bootstrap import interval, summarise

CLUSTERS = ("western", "slavic_greek", "west_south_asian", "east_asian")
STEPS = ("base", "arbitrage_sft", "offline_dpo", "online_dpo_1", "online_dpo_2", "online_dpo_3")
COMPARED = ("single_teacher", "random_routing")
SKILL = dict(zip(("base", *COMPARED, *STEPS[1:]), np.linspace(0.05, 0.75, 8), strict=True))
TEACHERS = (*CLUSTERS, "generalist")
PER_LANGUAGE = 6
NASTY = '<script>alert("x")</script> & <b>bold</b>'


def _marked(model, seed):
    """0/1 values and rewards of one model, a few prompts a language."""
    rng = np.random.default_rng([seed, len(model), *model.encode()])
    codes = [code for code in LANGUAGES for _ in range(PER_LANGUAGE)]
    correct = (rng.random(len(codes)) < SKILL[model]).astype(float)
    return {
        "correct": correct,
        "right_language": (rng.random(len(codes)) < 0.9).astype(float),
        "reward": correct + rng.normal(0, 0.3, len(codes)),
        "unused_reward": 2 * correct - 1 + rng.normal(0, 0.3, len(codes)),
    }, codes


def _models(seed):
    theirs, _ = _marked("single_teacher", seed)
    models = {}
    for model in SKILL:
        values, codes = _marked(model, seed)
        figures = {name: summarise(list(each), codes) for name, each in values.items()}
        kinds = ["date_format" if i % 2 else "number_format" for i in range(len(codes))]
        figures["correct"]["by_kind"] = summarise(list(values["correct"]), kinds)["by_language"]
        if model != "single_teacher":
            for name, source in (("win_rate", "unused_reward"), ("checker_win_rate", "correct")):
                won = (np.sign(values[source] - theirs[source]) + 1) / 2
                figures[name] = summarise(list(won), codes)
        models[model] = figures
    return models


def _lineage():
    made = {"base": {"stage": "base", "method": "pretrain", "weights": [], "parents": []}}

    def trained(name, parent, method):
        made[name] = {
            "stage": name,
            "method": method,
            "weights": [None],
            "parents": [{"path": parent, "weight": None}],
        }

    for teacher in TEACHERS:
        trained(f"teacher.{teacher}", "base", "sft")
    start = "base"
    for model in (*COMPARED, *STEPS[1:]):
        if model in COMPARED or model == "arbitrage_sft":
            start = "base"
        for cluster in CLUSTERS:
            trained(f"{model}.{cluster}", start, "dpo" if "dpo" in model else "sft")
        made[model] = {
            "stage": model,
            "method": "linear",
            "weights": [0.25] * 4,
            "parents": [{"path": f"{model}.{c}", "weight": 0.25} for c in CLUSTERS],
        }
        start = model
    return made


def _history():
    def falling(steps, start, every=10):
        return [[s, float(f"{start * 40 / (40 + s):.6g}")] for s in range(every, steps + 1, every)]

    history = {"base": {"loss": falling(400, 6.0)}}
    for i, teacher in enumerate(TEACHERS):
        history[f"teacher.{teacher}"] = {
            "loss": falling(60 if teacher == "generalist" else 200, 2 + i / 5)
        }
    for i, name in enumerate(("reward", "judge")):
        history[name] = {
            "loss": falling(300, 0.7),
            "rewards/accuracies": [[s, 1 - 0.4 * 40 / (40 + s + i)] for s in range(10, 301, 10)],
            "rewards/margins": [[s, s / 100] for s in range(10, 301, 10)],
        }
    for model in (*COMPARED, *STEPS[1:]):
        for i, cluster in enumerate(CLUSTERS):
            history[f"{model}.{cluster}"] = {"loss": falling(160, 1.5 + i / 8)}
            if "dpo" in model:
                history[f"{model}.{cluster}"] = {
                    "loss": [[10, 0.69], [20, 0.6 + i / 50]],
                    "rewards/accuracies": [[10, 0.5], [20, 0.7 + i / 20]],
                    "rewards/margins": [[10, 0.01], [20, 0.2 + i / 10]],
                }
    return history


def _samples(models):
    samples = []
    for code in LANGUAGES:
        for i, target in enumerate((code, "fr")):
            samples.append(
                {
                    "language": code,
                    "answer_language": target,
                    "kind": "number_format",
                    "prompt": f"{code} {i}: {NASTY}" if code == "en" else f"{code} {i}: 1234,5 ?",
                    "answers": [f"reference {code} {i}", f"also {code} {i}"],
                    "completions": {
                        model: {
                            "text": f"{model} says {code} {i}",
                            "correct": n % 2 == 0,
                            "right_language": True,
                            "reward": 0.5 * n,
                            "unused_reward": 0.25 * n,
                        }
                        for n, model in enumerate(models)
                    },
                }
            )
    return samples


def _run(seed):
    rng = np.random.default_rng(seed)
    models = _models(seed)
    codes = list(LANGUAGES)
    accuracy = summarise(list((rng.random(92) < 0.9).astype(float)), codes * 4)
    routing = {}
    for router in ("reward", "random", "single"):
        routing[router] = {}
        for i, code in enumerate(codes):
            counts = dict(zip(TEACHERS, (12 + rng.integers(0, 9, 5)).tolist(), strict=True))
            counts[TEACHERS[i % 5]] += 60 if router == "reward" else 0
            routing[router][code] = {"generalist": 100} if router == "single" else counts
    return {
        "recipe": "sample",
        "seed": seed,
        "base": "base",
        "final": STEPS[-1],
        "opponent": "single_teacher",
        "steps_of_recipe": ["base", "single_teacher", *STEPS[1:]],
        "models": models,
        "stages": [
            {"name": "tokenizer", "seconds": 2.2, "figures": {"pieces": 3072}},
            {"name": "base", "seconds": 72.0, "figures": {"rows": 2062, "loss": 0.8472}},
            {"name": "teacher.western", "seconds": 19.8, "figures": {"loss": 0.17}},
            {"name": "reward", "seconds": 31.5, "figures": {"held_out_accuracy": accuracy}},
            {"name": "route.reward", "seconds": 0.4, "figures": {"routing": routing["reward"]}},
            {"name": "arbitrage_sft.western", "seconds": 16.0, "figures": {"examples": 800}},
            {"name": "arbitrage_sft", "seconds": 0.4, "figures": {"models": 4}},
            {"name": "offline_dpo.western", "seconds": 19.0, "figures": {"pairs": 774}},
            {"name": "online_dpo_1.samples", "seconds": 24.0, "figures": {"samples": 9200}},
            {"name": "evaluate.base", "seconds": 8.0, "figures": {"correct": 0.05}},
        ],
        "routing": routing,
        "reward_models": {"reward": accuracy, "judge": accuracy},
        "history": _history(),
        "samples": _samples(models),
        "lineage": _lineage(),
        "languages": {
            code: {"name": language.name, "direction": language.direction}
            for code, language in LANGUAGES.items()
        },
        "settings": "# the <settings> & more\nSEED = 0\n",
        "versions": {"jax": "0.10.2", "python": "3.11.9"},
    }


def _comparison(claim, metric, arms, reports):
    difference = {}
    for seed in reports:
        ours, codes = _marked(arms[0], seed)
        theirs, _ = _marked(arms[1], seed)
        difference[str(seed)] = interval(ours[metric] - theirs[metric], np.asarray(codes))
    shown = sum(f["low"] > 0 for f in difference.values())
    against = sum(f["high"] < 0 for f in difference.values())
    verdict = f"shown in {shown} of {len(reports)} seeds"
    return {
        "claim": claim,
        "question": {"correct": "share of correct answers"}.get(metric, "mean reward"),
        "metric": metric,
        "arms": list(arms),
        "seeds": {
            str(seed): {arm: r["models"][arm][metric]["overall"] for arm in arms}
            for seed, r in reports.items()
        },
        "difference": difference,
        "verdict": verdict + (f", the opposite in {against}" if against else ""),
    }


@pytest.fixture(scope="session")
def _kept():
    runs = {seed: _run(seed) for seed in (0, 1, 2)}
    claims = (
        ("The whole recipe beats SFT on one teacher", "online_dpo_3", "single_teacher"),
        ("Arbitrage beats random routing", "random_routing", "arbitrage_sft"),
        ("More iterations help", "online_dpo_1", "offline_dpo"),
    )
    study = {
        **runs[0],
        "seeds": list(runs),
        "overall": {
            str(seed): {
                model: {metric: figure["overall"] for metric, figure in figures.items()}
                for model, figures in run["models"].items()
            }
            for seed, run in runs.items()
        },
        "comparisons": [
            _comparison(claim, metric, arms, runs)
            for claim, *arms in claims
            for metric in ("correct", "unused_reward")
        ],
    }
    return runs[0], study


@pytest.fixture
def report(_kept):
    """The report of one run; a test may change its copy."""
    return copy.deepcopy(_kept[0])


@pytest.fixture
def study(_kept):
    """The report of a study of three seeds; a test may change its copy."""
    return copy.deepcopy(_kept[1])
