"""A study: the claims of the paper as comparisons of two models, in every seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aya_jax.evaluation.bootstrap import Figure, interval
from aya_jax.recipe.summary import Finished

# What is claimed, and which model should be better than which.
CLAIMS = (
    ("The whole recipe beats SFT on one teacher", "{final}", "{opponent}"),
    ("Arbitrage beats a single teacher", "arbitrage_sft", "single_teacher"),
    ("Arbitrage beats random routing", "arbitrage_sft", "random_routing"),
    ("Arbitrage beats a fixed router", "arbitrage_sft", "fixed_routing"),
    ("Arbitrage beats a learned router", "arbitrage_sft", "learned_routing"),
    ("Offline then online beats offline alone", "{final}", "offline_dpo"),
    ("Offline then online beats online alone", "{final}", "{online}"),
    ("Merging the clusters beats mixing their data", "arbitrage_sft", "mixed_sft"),
    ("A linear merge beats SLERP", "arbitrage_sft", "slerp_merge"),
    ("A linear merge beats TIES", "arbitrage_sft", "ties_merge"),
    ("A linear merge beats DARE-TIES", "arbitrage_sft", "dare_ties_merge"),
)
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
    online = [m for m in first["models"] if m.startswith("online_only_")]
    names = {
        "final": first["final"],
        "opponent": first["opponent"],
        "online": online[-1] if online else "",
    }
    comparisons: list[dict[str, Any]] = []
    for claim, *arms in CLAIMS:
        pair = [arm.format(**names) for arm in arms]
        # A recipe without online iterations ends where another arm does: no comparison.
        if pair[0] != pair[1] and all(arm in first["models"] for arm in pair):
            comparisons.extend(
                _comparison(claim, metric, pair, reports, runs)
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
    return {**first, "seeds": list(reports), "overall": overall, "comparisons": comparisons}


def _comparison(
    claim: str,
    metric: str,
    arms: Sequence[str],
    reports: Mapping[int, dict[str, Any]],
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
            str(seed): {arm: report["models"][arm][metric]["overall"] for arm in arms}
            for seed, report in reports.items()
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
    ours, theirs = (run.marked(arm) for arm in arms)
    values = [float(a[metric]) - float(b[metric]) for a, b in zip(ours, theirs, strict=True)]
    languages = np.asarray([row.get("language", "und") for row in ours])
    return interval(np.asarray(values), languages)
