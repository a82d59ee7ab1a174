"""A study: the claims of the paper as comparisons of two models, in every seed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from aya_jax.evaluation.bootstrap import Figure, interval, summarise
from aya_jax.recipe.summary import Finished

# What is claimed, and which model should be better than which.
CLAIMS = (
    ("The whole recipe beats SFT on one teacher", "{final}", "single_teacher"),
    ("Arbitrage beats a single teacher", "arbitrage_sft", "single_teacher"),
    ("Arbitrage beats random routing", "arbitrage_sft", "random_routing"),
    ("Arbitrage beats a fixed router", "arbitrage_sft", "fixed_routing"),
    ("Arbitrage beats a learned router", "arbitrage_sft", "learned_routing"),
    ("Offline then online beats offline alone", "{final}", "offline_dpo"),
    ("Offline then online beats online alone", "{final}", "{online}"),
    ("Merging the clusters beats mixing their data", "arbitrage_sft", "mixed_sft"),
    ("Merging the clusters beats not merging them", "arbitrage_sft", "unmerged"),
    ("A linear merge beats SLERP", "arbitrage_sft", "slerp_merge"),
    ("A linear merge beats TIES", "arbitrage_sft", "ties_merge"),
    ("A linear merge beats DARE-TIES", "arbitrage_sft", "dare_ties_merge"),
)
# The mean of the SFT models of the clusters: what a prompt gets where they are not merged and one is taken blindly.
UNMERGED = "unmerged"
QUESTIONS = {
    "correct": "share of correct answers",
    "unused_reward": "mean reward under the judge that training never saw",
}


def compare(reports: Mapping[int, dict[str, Any]], runs: Mapping[int, Finished]) -> dict[str, Any]:
    """Return a study's report: the first seed's, with the comparisons over all seeds.

    Args:
      reports: of each seed's run.
      runs: the runs themselves; differences are taken prompt by prompt.
    """
    first = next(iter(reports.values()))
    models = [*first["models"], *([UNMERGED] if _parts(first["models"]) else [])]
    online = [m for m in first["models"] if m.startswith("online_only_")]
    names = {
        "final": first["final"],
        "online": online[-1] if online else "",
    }
    comparisons: list[dict[str, Any]] = []
    for claim, *arms in CLAIMS:
        pair = [arm.format(**names) for arm in arms]
        # A recipe without online iterations ends where another arm does: no comparison.
        if pair[0] != pair[1] and all(arm in models for arm in pair):
            comparisons.extend(
                _comparison(claim, metric, pair, runs)
                for metric in QUESTIONS
                if metric in first["models"][pair[0]]
            )
    overall = {
        str(seed): {
            model: {metric: figure["overall"] for metric, figure in figures.items()}
            for model, figures in report["models"].items()
        }
        for seed, report in reports.items()
    }
    pooled = {
        model: {
            metric: _pooled(runs.values(), metric, model)
            for metric in QUESTIONS
            if metric in first["models"][first["final"]]
        }
        for model in models
    }
    seeds = {"seeds": list(reports), "overall": overall, "pooled": pooled}
    return {**first, **seeds, "comparisons": comparisons}


def _parts(models: Iterable[str]) -> list[str]:
    """Return the models of the clusters, where these were evaluated."""
    return [model for model in models if model.startswith("arbitrage_sft.")]


def _values(run: Finished, metric: str, model: str) -> tuple[np.ndarray, list[str], list[str]]:
    """Return a model's values, float [R], and the languages and texts of the prompts."""
    each = [run.marked(m) for m in (_parts(run.evaluated) if model == UNMERGED else [model])]
    values = np.mean([[float(row[metric]) for row in rows] for rows in each], axis=0)
    rows = each[0]
    return values, [row.get("language", "und") for row in rows], [row["prompt"] for row in rows]


def _pooled(runs: Iterable[Finished], metric: str, model: str) -> Figure:
    """Return a model's figures over all seeds, overall and by language.

    Where all seeds have the same prompts, the mean over seeds is one value a prompt, and the intervals are over
    prompts; the seeds themselves are not drawn again, they are few.
    """
    found = [_values(run, metric, model) for run in runs]
    values, codes, prompts = zip(*found, strict=True)
    if all(each == prompts[0] for each in prompts):
        return summarise(np.mean(values, axis=0).tolist(), codes[0])
    return summarise(np.concatenate(values).tolist(), [c for each in codes for c in each])


def _comparison(
    claim: str,
    metric: str,
    arms: Sequence[str],
    runs: Mapping[int, Finished],
) -> dict[str, Any]:
    difference = {str(seed): paired_difference(run, metric, arms) for seed, run in runs.items()}
    shown = sum(figure["low"] > 0 for figure in difference.values())
    against = sum(figure["high"] < 0 for figure in difference.values())
    verdict = f"shown in {shown} of {len(runs)} seeds"
    if against:
        verdict += f", the opposite in {against}"
    return {
        "claim": claim,
        "question": QUESTIONS[metric],
        "metric": metric,
        "arms": list(arms),
        "seeds": {
            str(seed): {
                arm: summarise(values.tolist(), codes)["overall"]
                for arm in arms
                for values, codes, _ in [_values(run, metric, arm)]
            }
            for seed, run in runs.items()
        },
        "difference": difference,
        "verdict": verdict,
    }


def paired_difference(run: Finished, metric: str, arms: Sequence[str]) -> Figure:
    """Return the mean difference of two models' answers to the same prompts, with its interval.

    Args:
      run: holds both models' marked answers.
      metric: a field of the marked answers.
      arms: the two models; the second is taken from the first.
    """
    (ours, codes, _), (theirs, _, _) = (_values(run, metric, arm) for arm in arms)
    return interval(ours - theirs, np.asarray(codes))
