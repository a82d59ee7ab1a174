"""Every record as often as the formula says, whatever the order of the records."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aya_jax.data.mixture import mixture
from aya_jax.errors import AyaError

COUNTS = {"en": 700, "fr": 150, "el": 40, "uk": 9}


def records(counts=COUNTS, sources=("a", "b")):
    return [
        {"id": f"{code}-{i}", "language": code, "prompt": "?", "source": sources[i % len(sources)]}
        for code, count in counts.items()
        for i in range(count)
    ]


def times(drawn, field="id"):
    return Counter(record[field] for record in drawn)


def test_by_default_every_record_comes_once_in_its_place():
    rows = [*records(), {"prompt": "of no language"}, {"prompt": "of no language"}]
    assert mixture(rows) == rows
    assert mixture(rows, languages={"el": 1}, sources={"a": 1.0}, seed=3) == rows
    assert mixture([]) == []


@pytest.mark.parametrize("temperature", [0.5, 1.5, 1 / 0.3, 5.0, 1e9])
def test_languages_have_the_shares_of_the_temperature(temperature):
    drawn = times(mixture(records(), temperature=temperature), "language")
    sizes = np.array(list(COUNTS.values()), float)
    shares = sizes ** (1 / temperature) / (sizes ** (1 / temperature)).sum()
    found = [drawn[code] for code in COUNTS]
    np.testing.assert_allclose(found, shares * sizes.sum(), atol=0.51)
    if temperature == 1e9:
        assert max(found) - min(found) <= 1


@given(
    counts=st.dictionaries(
        st.sampled_from(["ar", "cs", "de", "el"]), st.integers(1, 30), min_size=1
    ),
    temperature=st.floats(0.05, 20),
    weights=st.tuples(st.floats(0.6, 3), st.floats(0.6, 3)),
    seed=st.integers(0, 5),
)
def test_no_record_comes_more_than_once_oftener_than_one_of_its_kind(
    counts, temperature, weights, seed
):
    rows = records(counts)
    settings = {"temperature": temperature, "sources": dict(zip("ab", weights, strict=True))}
    drawn = times(mixture(rows, **settings, seed=seed))
    total = sum(weights["ab".index(r["source"])] for r in rows)
    kinds = {}
    for row in rows:
        kinds.setdefault((row["language"], row["source"]), []).append(drawn[row["id"]])
    for often in kinds.values():
        assert max(often) - min(often) <= 1
    assert abs(sum(drawn.values()) - total) <= len(kinds) / 2 + 1e-6


def test_sources_of_equal_weight_are_one():
    """A record each, and yet a third of them is left out."""
    rows = records(sources=tuple(f"page {i}" for i in range(1000)))
    drawn = times(mixture(rows, languages=dict.fromkeys(COUNTS, 2 / 3)), "language")
    assert drawn == {"en": 467, "fr": 100, "el": 27, "uk": 6}


def test_which_records_come_oftener_follows_from_their_contents_alone():
    rows = records()
    settings = {"temperature": 3.0, "languages": {"en": 0.5}}
    drawn = times(mixture(rows, **settings))
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert times(mixture(shuffled, **settings)) == drawn
    other = times(mixture(rows, **settings, seed=1))
    assert other != drawn and Counter(other.values()) == Counter(drawn.values())
    # Half of English: not the first half of the file.
    english = [drawn[f"en-{i}"] for i in range(700)]
    assert 0.3 < np.mean(english[:350]) / np.mean(english) < 1.7


def test_a_higher_weight_keeps_what_a_lower_one_had():
    rows, before = records(), Counter()
    for weight in (0.1, 0.35, 0.8, 1.0, 1.4, 2.0, 2.7):
        drawn = times(mixture(rows, languages={"en": weight}))
        assert drawn >= before
        assert sum(n for name, n in drawn.items() if name.startswith("en")) == round(700 * weight)
        assert all(drawn[f"{code}-0"] == 1 for code in ("fr", "el", "uk"))
        before = drawn


def test_sources_are_weighed_before_the_temperature_and_languages_after():
    rows = records()
    without = mixture(rows, sources={"a": 0})
    assert without == [row for row in rows if row["source"] == "b"]
    twice = times(mixture(rows, sources={"a": 2}))
    assert all(twice[row["id"]] == (2 if row["source"] == "a" else 1) for row in rows)
    # English counts half as much before the square root is taken.
    some = [row for row in rows if row["language"] in ("en", "fr")]
    drawn = times(mixture(some, sources={"a": 0}, temperature=2.0), "language")
    share = np.sqrt(350) / (np.sqrt(350) + np.sqrt(75))
    assert drawn["en"] == round(425 * share)
    drawn = times(mixture(some, languages={"en": 0}, temperature=2.0), "language")
    assert set(drawn) == {"fr"}
    np.testing.assert_allclose(
        drawn["fr"], 850 * np.sqrt(150) / (np.sqrt(700) + np.sqrt(150)), atol=1.01
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "mixture.temperature is 0; it must be above 0"),
        ({"temperature": float("nan")}, "mixture.temperature is nan"),
        ({"languages": {"gr": 2}}, "mixture.languages: unknown language 'gr'"),
        ({"languages": {"el": -1}}, "mixture.languages: 'el' has weight -1"),
        ({"sources": {"a": float("inf")}}, "mixture.sources: 'a' has weight inf"),
        ({"sources": {"a": 0, "b": 0}}, "leave no record"),
    ],
)
def test_what_cannot_be_mixed_is_told(settings, message):
    with pytest.raises(AyaError, match=message):
        mixture(records(), **settings)
