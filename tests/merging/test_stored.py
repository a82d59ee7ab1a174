"""The merge on the disk has the bits of the merge in memory, however small the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints import leaves, slices
from aya_jax.checkpoints.slices import open_slices
from aya_jax.checkpoints.store import leaf_checksums, read_tree, write_tree
from aya_jax.errors import AyaError
from aya_jax.merging.methods import METHODS, NEEDS_BASE
from aya_jax.merging.stored import merge_stored
from aya_jax.merging.trees import merge_trees


def tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {"a": {"stack": (3, 8, 6), "flat": (7,)}, "matrix": (12, 5)}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


@pytest.fixture(scope="module", params=[jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def kept(request, tmp_path_factory):
    """Four trees, and where they are on the disk."""
    place = tmp_path_factory.mktemp("trees")
    trees = [tree(seed, request.param) for seed in range(4)]
    for number, each in enumerate(trees):
        write_tree(place, str(number), each)
    return trees, [open_slices(place, str(number)) for number in range(4)]


@pytest.mark.parametrize("method", METHODS)
def test_the_bits_are_those_of_the_merge_in_memory(kept, tmp_path, monkeypatch, method):
    trees, stored = kept
    settings = {"method": method, "weights": [0.5, 0.3, 0.2], "density": 0.4, "seed": 3}
    needs = method in NEEDS_BASE
    expected = merge_trees(trees[:3], base=trees[3] if needs else None, **settings)
    # Blocks of a row or two.
    monkeypatch.setattr(slices, "CHUNK", 24)
    monkeypatch.setattr(leaves, "BLOCK", 50)
    merge_stored(tmp_path, "merged", stored[:3], base=stored[3] if needs else None, **settings)
    assert leaf_checksums(read_tree(tmp_path, "merged")) == leaf_checksums(expected)


def test_one_tree_is_itself_with_its_negative_zeros(tmp_path):
    alone = {"w": np.array([-0.0, 0.0, np.nan, 1.5], np.float32)}
    write_tree(tmp_path, "tree", alone)
    merge_stored(tmp_path, "merged", [open_slices(tmp_path, "tree")])
    assert leaf_checksums(read_tree(tmp_path, "merged")) == leaf_checksums(alone)


def test_what_does_not_fit_is_told_before_anything_is_written(kept, tmp_path):
    _, stored = kept
    write_tree(tmp_path, "other", {"a": {"stack": np.zeros((3, 8, 5), np.float32)}})
    other = open_slices(tmp_path, "other")
    for trees, settings, told in (
        ([], {}, "there is no model to merge"),
        (stored[:2], {"weights": [1.0]}, "1 weights for 2 models"),
        (stored[:2], {"method": "ties"}, "needs a base model"),
        ([stored[0], other], {}, "the models differ at 'a/flat': (7,) against None"),
    ):
        with pytest.raises(AyaError, match="merge: ") as error:
            merge_stored(tmp_path, "merged", trees, **settings)
        assert told in str(error.value)
    assert not list(tmp_path.glob("merged*"))
