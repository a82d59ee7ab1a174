"""Which tokens `choose` may take, and how often, against a definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aya_jax.generation.engine import choose

VOCABULARY = 11
DRAWS = 4000


def definition(logits, temperature, top_k, top_p):
    """The probabilities that are sampled from, float64 [V]."""
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[: top_k or len(order)]
    if top_p is not None:
        # Of what top_k left, made to sum to one: as many of the best as reach top_p.
        reached = np.cumsum(p[kept] / p[kept].sum())
        kept = kept[: 1 + int((reached < top_p - 1e-9).sum())]
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


def draw(logits, temperature, top_k, top_p, seed=0, count=DRAWS):
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits)))
    keys = jax.random.split(jax.random.key(seed), count)
    tokens = choose(rows, keys, jnp.float32(temperature), top_k=top_k, top_p=top_p)
    assert tokens.dtype == jnp.int32 and tokens.shape == (count,)
    return np.bincount(np.asarray(tokens), minlength=len(logits)) / count


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, None),
        (0.5, None, None),
        (2.0, None, None),
        (1.0, 3, None),
        (1.0, 1, None),
        (1.0, VOCABULARY + 5, None),
        (1.0, None, 0.6),
        (2.0, None, 0.9),
        (1.0, None, 1.0),
        (1.0, None, 1e-6),
        (1.5, 4, 0.7),
    ],
)
def test_frequencies_are_the_definitions(temperature, top_k, top_p):
    logits = np.random.default_rng(3).normal(0, 1.5, VOCABULARY)
    expected = definition(logits, temperature, top_k, top_p)
    found = draw(logits, temperature, top_k, top_p)
    assert not found[expected == 0].any()
    # Five standard deviations of a frequency.
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / DRAWS)).all()


@given(
    logits=st.lists(st.integers(-40, 40), min_size=5, max_size=5, unique=True),
    temperature=st.sampled_from([0.7, 1.0, 3.0]),
    top_k=st.sampled_from([None, 1, 2, 4]),
    top_p=st.sampled_from([None, 0.3, 0.8]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_nothing_outside_the_allowed_set_is_ever_taken(logits, temperature, top_k, top_p, seed):
    logits = np.asarray(logits) / 10
    expected = definition(logits, temperature, top_k, top_p)
    found = draw(logits, temperature, top_k, top_p, seed=seed, count=64)
    assert not found[expected == 0].any()


def test_temperature_0_takes_the_best_whatever_the_key():
    logits = np.random.default_rng(4).normal(0, 1, VOCABULARY)
    for top_k, top_p in ((None, None), (5, None), (None, 0.9)):
        assert draw(logits, 0.0, top_k, top_p, count=50)[logits.argmax()] == 1.0


def test_rows_are_drawn_by_their_own_keys():
    rows = jnp.asarray(np.random.default_rng(5).normal(0, 1, (6, VOCABULARY)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 6)
    whole = choose(rows, keys, jnp.float32(1.0), top_k=None, top_p=None)
    order = np.array([4, 0, 5, 2, 1, 3])
    moved = choose(rows[order], keys[order], jnp.float32(1.0), top_k=None, top_p=None)
    np.testing.assert_array_equal(np.asarray(whole)[order], moved)
