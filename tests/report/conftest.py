"""A report as `summary.report_of` makes it, and a study's as `study.compare` does, without a run."""

import copy
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

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


def _stages(models, accuracy, routing):
    """In the recipe's order, with figures of every sort."""
    figures = {
        "base": {"rows": 2062, "loss": 0.8472},
        "reward": {"held_out_accuracy": accuracy, "pairs": 1100},
        "route.reward": {"completions": 2300, "routing": routing["reward"]},
    }
    made = list(_lineage())
    names = ["tokenizer", *made[:6], "reward", "judge", "candidates", "route.reward", *made[6:]]
    names += [f"evaluate.{model}" for model in models]
    return [
        {"name": name, "seconds": 1.0 + i / 4, "figures": figures.get(name, {})}
        for i, name in enumerate(names)
    ]


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
        "stages": _stages(models, accuracy, routing),
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


VOID = ("meta", "input", "br", "hr", "img", "link")


class _Tree(HTMLParser):
    """Reads a page into elements; a tag that is not closed, or closed out of turn, is an error."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.builder, self.open = ET.TreeBuilder(), []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.builder.start(tag, dict(attrs))
        self.builder.end(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())
        self.builder.end(tag)

    def handle_data(self, data):
        if self.open:
            self.builder.data(data)


@pytest.fixture
def parse():
    """Return a function from a page to its root element."""

    def tree(page):
        reader = _Tree()
        reader.feed(page)
        reader.close()
        assert not reader.open
        return reader.builder.close()

    return tree


def text_of(element):
    """Return all text of an element, spaces made single."""
    return " ".join("".join(element.itertext()).split())


def classes(element):
    return element.get("class", "").split()


def of_class(root, name):
    return [e for e in root.iter() if name in classes(e)]


@pytest.fixture
def find():
    """Return a function from an element and a class to the elements of that class."""
    return of_class


@pytest.fixture
def text():
    """Return `text_of`."""
    return text_of
