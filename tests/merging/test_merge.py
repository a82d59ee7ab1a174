import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.errors import AyaError
from aya_jax.merging.methods import METHODS, NEEDS_BASE
from aya_jax.merging.trees import merge_trees

RNG = np.random.default_rng(0)


def tree(seed):
    rng = np.random.default_rng(seed)
    return {
        "a": {"w": jnp.asarray(rng.normal(size=(4, 5)).astype(np.float32))},
        "b": jnp.asarray(rng.normal(size=7).astype(np.float32)),
    }


TREES = [tree(i) for i in range(3)]
BASE = tree(9)


def leaves(t):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(t)]


def test_one_model_is_itself_bit_for_bit():
    merged = merge_trees([TREES[0]], weights=[1.0])
    for a, b in zip(leaves(merged), leaves(TREES[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_linear_is_the_weighted_sum_in_any_order():
    merged = merge_trees(TREES, weights=[0.5, 0.3, 0.2])
    turned = merge_trees(TREES[::-1], weights=[0.2, 0.3, 0.5])
    for i, leaf in enumerate(leaves(merged)):
        expected = sum(w * leaves(t)[i] for w, t in zip([0.5, 0.3, 0.2], TREES, strict=True))
        np.testing.assert_allclose(leaf, expected, atol=1e-6)
        np.testing.assert_allclose(leaves(turned)[i], leaf, atol=1e-6)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_equal_models_merge_to_themselves(method):
    density = 1.0 if method != "linear" else 0.5
    merged = merge_trees([TREES[0]] * 3, method=method, base=BASE, density=density)
    for a, b in zip(leaves(merged), leaves(TREES[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_slerp_follows_its_formula_and_gives_its_ends():
    a, b = TREES[:2]
    for weights, end in (((1.0, 0.0), a), ((0.0, 1.0), b)):
        merged = merge_trees([a, b], method="slerp", weights=weights)
        for x, y in zip(leaves(merged), leaves(end), strict=True):
            np.testing.assert_array_equal(x, y)
    merged = leaves(merge_trees([a, b], method="slerp", weights=[0.75, 0.25]))
    for i, leaf in enumerate(merged):
        x, y = leaves(a)[i], leaves(b)[i]
        cosine = (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)
        angle = np.arccos(cosine)
        expected = (np.sin(0.75 * angle) * x + np.sin(0.25 * angle) * y) / np.sin(angle)
        np.testing.assert_allclose(leaf, expected, atol=1e-5)


def test_slerp_of_parallel_and_zero_tensors_is_a_number():
    x = {"w": jnp.asarray([1.0, 2.0])}
    parallel = merge_trees([x, {"w": jnp.asarray([2.0, 4.0])}], method="slerp")
    np.testing.assert_allclose(parallel["w"], [1.5, 3.0], atol=1e-6)
    # A zero tensor has no direction: the cosine counts as 0, as in mergekit.
    zero = merge_trees([x, {"w": jnp.zeros(2)}], method="slerp")
    np.testing.assert_allclose(zero["w"], np.sin(np.pi / 4) * np.array([1.0, 2.0]), atol=1e-6)


def test_ties_is_trim_elect_and_disjoint_mean():
    weights, density = [0.5, 0.3, 0.2], 0.5
    merged = leaves(merge_trees(TREES, method="ties", base=BASE, weights=weights, density=density))
    for i, leaf in enumerate(merged):
        base = leaves(BASE)[i]
        deltas = [leaves(t)[i] - base for t in TREES]
        trimmed = []
        for delta in deltas:
            keep = int(density * delta.size)
            kept = np.zeros(delta.size)
            best = np.argsort(-np.abs(delta.ravel()), kind="stable")[:keep]
            kept[best] = delta.ravel()[best]
            trimmed.append(kept.reshape(delta.shape))
        weighted = np.stack([w * d for w, d in zip(weights, trimmed, strict=True)])
        sign = np.where(weighted.sum(0) >= 0, 1.0, -1.0)
        agree = np.sign(weighted) == sign
        share = (np.asarray(weights).reshape(-1, *[1] * base.ndim) * agree).sum(0)
        expected = base + (weighted * agree).sum(0) / np.where(share == 0, 1.0, share)
        np.testing.assert_allclose(leaf, expected, atol=1e-5)


def test_dare_keeps_the_mean():
    model, base = {"w": jnp.ones(20000)}, {"w": jnp.zeros(20000)}
    merged = merge_trees([model], method="dare_linear", base=base, density=0.25, seed=1)
    values = np.asarray(merged["w"])
    assert set(np.unique(values)) == {0.0, 4.0}
    assert abs(values.mean() - 1.0) < 0.05


def test_mistakes_are_told():
    with pytest.raises(AyaError, match="sum to 0\\.9"):
        merge_trees(TREES[:2], weights=[0.5, 0.4])
    with pytest.raises(AyaError, match="did you mean 'ties'"):
        merge_trees(TREES, method="tise")
    with pytest.raises(AyaError, match="2 weights for 3 models"):
        merge_trees(TREES, weights=[0.5, 0.5])
    for method in NEEDS_BASE:
        with pytest.raises(AyaError, match="needs a base"):
            merge_trees(TREES, method=method)
    with pytest.raises(AyaError, match="differ at 'b'"):
        merge_trees([TREES[0], {**TREES[1], "b": jnp.zeros(3)}])
