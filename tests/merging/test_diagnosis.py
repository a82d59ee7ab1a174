"""Distances, cosines and signs against those of whole models in memory, and barriers against arithmetic."""

import jax
import numpy as np
import pytest

from aya_jax.merging import diagnosis
from aya_jax.merging.diagnosis import barrier, diagnose
from aya_jax.merging.sources import open_source


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def expected(moved):
    """The figures of task vectors [n, entries], from their definitions."""
    count = len(moved)
    pairs = [(i, j) for i in range(count) for j in range(count)]
    norms = np.linalg.norm(moved, axis=1)
    found = {
        "entries": moved.shape[1],
        "norm": norms,
        "distance": [np.linalg.norm(moved[i] - moved[j]) for i, j in pairs],
        "cosine": [moved[i] @ moved[j] / norms[i] / norms[j] for i, j in pairs],
        "conflicts": np.mean(moved.max(0) * moved.min(0) < 0),
        "opposite": [
            np.sum(moved[i] * moved[j] < 0) / np.sum(moved[i] * moved[j] != 0) for i, j in pairs
        ],
    }
    return {key: np.reshape(value, -1) for key, value in found.items()}


def assert_same(found, truth):
    assert set(found) == set(truth)
    for key, value in truth.items():
        np.testing.assert_allclose(np.ravel(found[key]), value, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def compared(request, tiny, tmp_path_factory):
    """Three models in forms of their own, and their base; a fifth of what one learnt is nothing."""
    place = tmp_path_factory.mktemp("models")
    config = tiny.config_of(request.param)
    base, *moves = (tiny.params_of(config, seed) for seed in range(4))
    kept = jax.tree.map(lambda leaf: np.random.default_rng(9).random(leaf.shape) > 0.2, base)
    moves[2] = jax.tree.map(lambda leaf, stays: leaf * stays, moves[2], kept)
    trees = [jax.tree.map(lambda a, b: a + 0.25 * b, base, move) for move in moves] + [base]
    forms = ("packed", "hugging_face", "files", "packed")
    paths = [
        tiny.make(place / str(i), form, config, tree)
        for i, (form, tree) in enumerate(zip(forms, trees, strict=True))
    ]
    return trees, paths


def looked_at(paths):
    sources = [open_source(path) for path in paths]
    try:
        return diagnose(sources[:3], sources[3] if len(sources) > 3 else None)
    finally:
        for source in sources:
            source.close()


def test_figures_are_those_of_whole_models(compared, monkeypatch):
    trees, paths = compared
    base = trees[3]
    monkeypatch.setattr(diagnosis, "AT_ONCE", 100)
    found = looked_at(paths)
    moved = [jax.tree.map(np.subtract, tree, base) for tree in trees[:3]]
    assert_same(found["all"], expected(np.stack([flat(tree) for tree in moved])))
    for layer in range(3):
        one = [jax.tree.map(lambda leaf: leaf[layer], tree["layers"]) for tree in moved]  # noqa: B023
        truth = expected(np.stack([flat(tree) for tree in one]))
        assert_same(found["layers"][f"layer {layer}"], truth)
    embedding = np.stack([np.ravel(tree["embedding"]) for tree in moved]).astype(np.float64)
    assert_same(found["modules"]["embedding"], expected(embedding))
    for groups in (found["layers"], found["modules"]):
        entries = sum(group["entries"] for group in groups.values())
        assert entries == flat(base).size


def test_without_a_base_there_are_the_same_distances(compared):
    _, paths = compared
    alone = looked_at(paths[:3])["all"]
    assert set(alone) == {"entries", "distance"}
    np.testing.assert_allclose(alone["distance"], looked_at(paths)["all"]["distance"], rtol=1e-4)


def test_a_barrier_is_the_height_above_the_line_between_the_ends():
    assert barrier({0.0: 1.0, 0.5: 1.4, 1.0: 1.0}) == (pytest.approx(0.4), 0.5)
    # A slope is no barrier.
    assert barrier({0.0: 1.0, 0.5: 2.0, 1.0: 3.0})[0] == pytest.approx(0)
    assert barrier({0.0: 1.0, 0.25: 2.0, 0.5: 1.5, 1.0: 3.0}) == (pytest.approx(0.5), 0.25)
    assert barrier({0.0: 2.0, 0.5: 1.0, 1.0: 2.0})[0] == 0
