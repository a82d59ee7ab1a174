"""Trees on the disk: the same bits come back, and a damaged file is named."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from aya_jax.checkpoints import store
from aya_jax.checkpoints.store import leaf_checksums, read_tree, write_tree
from aya_jax.errors import AyaError


def awkward_tree():
    """All the values that a text form, or a wrong dtype on the way, would change."""
    rng = np.random.default_rng(0)
    floats = rng.normal(0, 1, (3, 5)).astype(np.float32)
    floats[0] = [-0.0, np.nan, np.inf, -np.inf, np.float32(1e-45)]
    return {
        "float32": {"block": floats, "deep": {"er": rng.normal(0, 1, 7).astype(np.float32)}},
        "bfloat16": rng.normal(0, 1, (4, 2, 3)).astype(ml_dtypes.bfloat16),
        "int32": np.array([np.iinfo(np.int32).min, -1, 0, np.iinfo(np.int32).max], np.int32),
        "bool": np.array([True, False]),
        "scalar": np.array(0.1, np.float32),
    }


def bits(tree):
    return jax.tree.map(
        lambda leaf: (np.asarray(leaf).dtype.name, leaf.shape, np.asarray(leaf).tobytes()), tree
    )


def damage(file, how):
    data = bytearray(file.read_bytes())
    if how == "a flipped bit":
        data[len(data) // 2] ^= 1
    elif how == "the last byte cut off":
        del data[-1]
    else:
        file.unlink()
        return
    file.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    write_tree(folder, "tree", awkward_tree())
    return folder


def test_the_same_bits_come_back_as_numpy_and_onto_devices(written):
    tree = awkward_tree()
    plain = read_tree(written, "tree")
    assert bits(plain) == bits(tree)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    assert bits(read_tree(written, "tree", like)) == bits(tree)
    placed = read_tree(written, "tree", jax.tree.map(jnp.asarray, tree))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
    assert bits(placed) == bits(tree)
    assert leaf_checksums(placed) == leaf_checksums(tree)


def test_writing_again_replaces(written, tmp_path):
    write_tree(tmp_path, "tree", {"a": np.zeros(3, np.float32)})
    write_tree(tmp_path, "tree", {"b": np.ones(2, np.float32)})
    assert bits(read_tree(tmp_path, "tree")) == bits({"b": np.ones(2, np.float32)})


@pytest.mark.parametrize("how", ["a flipped bit", "the last byte cut off", "gone"])
def test_damage_of_any_file_is_told_by_its_name(tmp_path, how):
    write_tree(tmp_path, "tree", awkward_tree())
    files = [path for path in (tmp_path / "tree").rglob("*") if path.is_file()]
    listed = json.loads((tmp_path / "tree.checksums.json").read_text())
    assert sorted(listed) == sorted(str(path.relative_to(tmp_path / "tree")) for path in files)
    for file in files:
        whole = file.read_bytes()
        if not whole and how != "gone":
            continue
        damage(file, how)
        with pytest.raises(AyaError) as error:
            read_tree(tmp_path, "tree")
        fault = "is missing" if how == "gone" else "is damaged"
        advice = f"restore the checkpoint from a copy, or remove {tmp_path} and make it again"
        assert str(error.value) == f"{file}: {fault}; {advice}"
        file.write_bytes(whole)
    read_tree(tmp_path, "tree")


@pytest.mark.parametrize("content", [None, b"", b"]", b"[]", b"\xff", b"3"])
def test_a_listing_that_cannot_be_read_is_told(tmp_path, content):
    write_tree(tmp_path, "tree", {"a": np.zeros(3, np.float32)})
    listing = tmp_path / "tree.checksums.json"
    listing.unlink()
    if content is not None:
        listing.write_bytes(content)
    with pytest.raises(AyaError, match="no such file" if content is None else "cannot be") as error:
        read_tree(tmp_path, "tree")
    assert str(listing) in str(error.value)
    if content is not None:
        assert f"or remove {tmp_path} and make it again" in str(error.value)


def test_of_what_nothing_can_catch_only_closed_loops_are_not_told(monkeypatch):
    told = []
    monkeypatch.setattr(store, "_print", told.append)
    for error in (RuntimeError("Event loop is closed"), RuntimeError("Event loop"), OSError(28)):
        store._tell(SimpleNamespace(exc_value=error))
    assert [str(fault.exc_value) for fault in told] == ["Event loop", "28"]


def test_a_tree_that_never_was_is_told(tmp_path):
    with pytest.raises(AyaError, match="holds no whole checkpoint"):
        read_tree(tmp_path, "tree")


def test_checksums_see_dtype_shape_and_place():
    a = np.arange(6, dtype=np.float32)
    sums = [
        leaf_checksums(tree)
        for tree in (
            {"a": a},
            {"b": a},
            {"a": a.reshape(2, 3)},
            {"a": a.view(np.int32)},
            {"a": {"a": a}},
            {"a": -a},
        )
    ]
    assert len({json.dumps(each) for each in sums}) == len(sums)
    assert leaf_checksums({"x": a, "b": {"c": a}}).keys() == {"x", "b/c"}
