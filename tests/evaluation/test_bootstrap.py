"""Intervals against an implementation of their own, and against what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aya_jax.evaluation.bootstrap import interval, summarise, wins


def plain_bootstrap(values, strata, rounds, seed):
    """Resample prompt by prompt within each stratum; the 2.5% and 97.5% points of the means."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(rounds):
        drawn = []
        for stratum in sorted(set(strata)):
            own = [v for v, s in zip(values, strata, strict=True) if s == stratum]
            drawn += [own[i] for i in rng.integers(0, len(own), len(own))]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return means[int(0.025 * rounds)], means[int(0.975 * rounds) - 1]


def test_the_interval_is_that_of_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    strata = np.repeat(["de", "en", "zh"], [40, 25, 60])
    values = rng.normal(0, 1, 125) + (strata == "zh") * 3.0
    figure = interval(values, strata, rounds=8000)
    low, high = plain_bootstrap(values, strata, 2000, seed=1)
    assert figure["value"] == pytest.approx(values.mean()) and figure["n"] == 125
    # Both ends vary with the draws: by about 3% of the width at 2,000 rounds.
    assert abs(figure["low"] - low) < 0.1 * (high - low)
    assert abs(figure["high"] - high) < 0.1 * (high - low)


def test_strata_keep_their_weight():
    # Nothing varies within a language: however it is drawn, the mean is the same.
    strata = np.repeat(["de", "en"], [3, 5])
    figure = interval(np.where(strata == "de", 1.0, 0.0), strata)
    assert (figure["low"], figure["value"], figure["high"]) == pytest.approx((3 / 8,) * 3)
    # Without strata it would vary.
    loose = interval(np.where(strata == "de", 1.0, 0.0), np.repeat("all", 8))
    assert loose["low"] < 3 / 8 < loose["high"]


@pytest.mark.parametrize("kind", ["normal", "share", "skewed"])
def test_it_covers_the_truth_nineteen_times_in_twenty(kind):
    rng = np.random.default_rng(5)
    strata = np.repeat(["de", "en", "zh"], [50, 40, 60])
    shift = np.repeat([0.0, 0.1, 0.3], [50, 40, 60])
    held = 0
    for trial in range(300):
        if kind == "normal":
            values, truth = shift + rng.normal(0, 1, 150), shift.mean()
        elif kind == "share":
            values, truth = (rng.random(150) < 0.4 + shift).astype(float), (0.4 + shift).mean()
        else:
            values, truth = shift + rng.exponential(1.0, 150), shift.mean() + 1
        figure = interval(values, strata, rounds=400, seed=trial)
        held += figure["low"] <= truth <= figure["high"]
    # 95% and five standard deviations of a count of 300: 266 to 300; an interval at 99% or of half
    # the width would not be in between.
    assert 266 <= held <= 297


values_and_strata = st.lists(
    st.tuples(st.floats(-100, 100), st.sampled_from(["de", "en", "fa"])), min_size=1, max_size=30
)


@given(rows=values_and_strata, seed=st.integers(0, 10))
@settings(max_examples=40, deadline=None)
def test_an_interval_lies_within_the_values_and_moves_with_them(rows, seed):
    values, strata = (np.asarray(column) for column in zip(*rows, strict=True))
    figure = interval(values, strata, rounds=100, seed=seed)
    slack = 1e-9 * (1 + np.abs(values).max())
    assert values.min() - slack <= figure["low"] <= figure["high"] <= values.max() + slack
    assert interval(values, strata, rounds=100, seed=seed) == figure
    moved = interval(3 - 2 * values, strata, rounds=100, seed=seed)
    for ours, theirs in (("low", "high"), ("value", "value"), ("high", "low")):
        assert moved[ours] == pytest.approx(3 - 2 * figure[theirs], abs=1e-6)


def test_figures_by_language():
    values, codes = [1, 0, 1, 1, 0], ["de", "de", "en", "en", "en"]
    figures = summarise(values, codes)
    assert figures["overall"]["value"] == pytest.approx(0.6) and figures["overall"]["n"] == 5
    by_language = figures["by_language"]
    assert list(by_language) == ["de", "en"]
    assert by_language["de"]["value"] == 0.5 and by_language["de"]["n"] == 2
    assert by_language["en"]["value"] == pytest.approx(2 / 3) and by_language["en"]["n"] == 3
    for code, figure in by_language.items():
        own = np.asarray([v for v, c in zip(values, codes, strict=True) if c == code], float)
        assert figure == interval(own, np.repeat(code, len(own)))


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_wins_of_one_are_losses_of_the_other(pairs):
    ours, theirs = zip(*pairs, strict=True)
    won = wins(ours, theirs)
    expected = [1.0 if a > b else 0.0 if a < b else 0.5 for a, b in pairs]
    assert won.tolist() == expected
    np.testing.assert_array_equal(won + wins(theirs, ours), 1.0)


def test_a_verdict_of_true_and_false_can_be_set_against_another():
    assert wins([True, True, False], [False, True, True]).tolist() == [1.0, 0.5, 0.0]
