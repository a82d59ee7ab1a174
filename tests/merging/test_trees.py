"""The tree map over parameters in memory: tensor by tensor, as the methods are on the disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.errors import AyaError
from aya_jax.merging.methods import Settings, Tensor, merge_tensor
from aya_jax.merging.trees import merge_trees
from aya_jax.models.names import HFTensor

LAYERS, INPUTS, OUTPUTS = 3, 4, 6
TENSORS = [
    HFTensor(
        f"layers.{i}.up.weight", (OUTPUTS, INPUTS), ("layers", "up"), (i,), (INPUTS, OUTPUTS), True
    )
    for i in range(LAYERS)
] + [HFTensor("norm.weight", (INPUTS,), ("norm",), (), (INPUTS,), False)]


def tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "layers": {"up": jnp.asarray(rng.normal(size=(LAYERS, INPUTS, OUTPUTS)), dtype)},
        "norm": jnp.asarray(rng.normal(size=INPUTS), dtype),
    }


def test_each_layer_is_a_tensor_of_its_own_with_settings_of_its_own():
    a, b = tree(0), tree(1)
    shares = {each.name: Settings((1 - i / 4, i / 4)) for i, each in enumerate(TENSORS)}
    merged = merge_trees([a, b], shares, method="slerp", tensors=TENSORS)
    for i, each in enumerate(TENSORS):
        pair = [model["norm"] if not each.index else model["layers"]["up"][i] for model in (a, b)]
        told = Tensor(each.name, each.shape, each.transpose)
        expected = merge_tensor("slerp", shares[each.name], told, pair)
        found = merged["norm"] if not each.index else merged["layers"]["up"][i]
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(merged["layers"]["up"][0], a["layers"]["up"][0])
    # Angles are those of a layer, not of the stack.
    stacked = merge_trees([a, b], Settings((0.5, 0.5)), method="slerp")
    by_layer = merge_trees([a, b], Settings((0.5, 0.5)), method="slerp", tensors=TENSORS)
    assert np.abs(stacked["layers"]["up"] - by_layer["layers"]["up"]).max() > 1e-3


def test_the_merge_has_the_dtypes_and_the_structure_of_the_first():
    trees = [tree(0, jnp.bfloat16), tree(1, jnp.bfloat16)]
    merged = merge_trees(trees, Settings((0.5, 0.5)))
    assert jax.tree.map(lambda x: (x.dtype, x.shape), merged) == jax.tree.map(
        lambda x: (x.dtype, x.shape), trees[0]
    )
    for found, a, b in zip(*map(jax.tree.leaves, (merged, *trees)), strict=True):
        mean = (np.asarray(a, np.float64) + np.asarray(b, np.float64)) / 2
        np.testing.assert_array_equal(found, jnp.asarray(mean, jnp.bfloat16))


def test_trees_of_other_shapes_are_refused():
    with pytest.raises(AyaError, match=r"differ at 'norm': \(4,\) against \(5,\)"):
        merge_trees([tree(0), {**tree(1), "norm": jnp.zeros(5)}], Settings((0.5, 0.5)))
    with pytest.raises(AyaError, match=r"'norm': .* against None"):
        merge_trees([tree(0), {"layers": tree(1)["layers"]}], Settings((0.5, 0.5)))
