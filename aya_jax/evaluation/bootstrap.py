"""Means with bootstrap intervals, for each language and over all."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Figure = dict[str, Any]


def interval(
    values: np.ndarray, strata: np.ndarray, *, rounds: int = 1000, seed: int = 0
) -> Figure:
    """Return the mean of `values` with its 95% percentile-bootstrap interval.

    Prompts are drawn again with replacement within each stratum (language), so that every language
    keeps its weight (Efron and Tibshirani, 1993, chapter 13).

    Args:
      values: float [R].
      strata: [R], the stratum of each value.
      rounds: bootstrap samples.
      seed: of the resampling.

    Returns:
      `value`, `low`, `high` and `n`.
    """
    rng = np.random.default_rng(seed)
    sums = np.zeros(rounds)
    for stratum in np.unique(strata):
        part = values[strata == stratum]
        sums += part[rng.integers(0, len(part), (rounds, len(part)))].sum(axis=1)
    low, high = np.percentile(sums / len(values), [2.5, 97.5])
    return {
        "value": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "n": len(values),
    }


def summarise(values: Sequence[float], languages: Sequence[str], *, seed: int = 0) -> Figure:
    """Return `overall` and `by_language` figures of one value a prompt, as `report.json` has them.

    Args:
      values: one a prompt.
      languages: of the prompts; the strata of the overall interval.
      seed: of the resampling.
    """
    each, codes = np.asarray(values, np.float64), np.asarray(languages)
    return {
        "overall": interval(each, codes, seed=seed),
        "by_language": {
            str(code): interval(each[codes == code], codes[codes == code], seed=seed)
            for code in np.unique(codes)
        },
    }


def wins(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """Return float64 [R]: 1.0 where `a` is higher, 0.0 where `b` is, 0.5 for a tie."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return np.where(difference > 0, 1.0, np.where(difference < 0, 0.0, 0.5))
