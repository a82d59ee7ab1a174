"""Leaves in parts: whatever the layout and the room, the parts are the whole in C order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints import leaves, store
from aya_jax.checkpoints.leaves import blocks, shared_out, stored_checksums
from aya_jax.checkpoints.store import leaf_checksums, write_tree


@pytest.mark.parametrize("room", [1, 2, 5, 8, 24, 40, 100, 10_000])
@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        ((), ()),
        ((7,), (3,)),
        ((1, 1), (1, 1)),
        ((6, 4), (2, 4)),
        ((6, 4), (6, 1)),
        ((3, 5, 4), (1, 2, 4)),
        ((3, 5, 4), (3, 5, 1)),
        ((1, 5, 4), (1, 5, 4)),
        ((2, 3, 1, 5), (1, 1, 1, 5)),
    ],
)
def test_blocks_one_after_another_are_the_bytes_of_the_array(monkeypatch, shape, chunk, room):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int16).reshape(shape)
    monkeypatch.setattr(leaves, "BLOCK", 2 * room)
    parts = list(blocks(shape, chunk, 2))
    assert b"".join(array[part].tobytes() for part in parts) == array.tobytes()
    assert all(array[part].size <= room for part in parts)


def test_blocks_are_whole_chunks_where_there_is_room(monkeypatch):
    monkeypatch.setattr(leaves, "BLOCK", 4 * 50)
    starts = [part[1].start for part in blocks((2, 12, 5), (1, 4, 5), 4)]
    assert starts == [0, 8] * 2


def test_leaves_are_shared_out_evenly(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    sizes = {"a": 8, "b": 5, "c": 4, "d": 4, "e": 1}
    assert shared_out(sizes) == [["a"], ["b", "e"], ["c", "d"]]


@pytest.mark.parametrize("room", [40, 300, 1 << 20])
def test_checksums_from_the_disk_are_those_of_the_arrays(tmp_path, monkeypatch, room):
    rng = np.random.default_rng(0)
    tree = {
        "stack": {"w": rng.normal(size=(4, 6, 5)).astype(np.float32)},
        "half": np.asarray(jnp.asarray(rng.normal(size=(9, 7)), jnp.bfloat16)),
        "one": np.array(3, np.int32),
        "flat": jnp.asarray(rng.normal(size=11), jnp.float16),
    }
    monkeypatch.setattr(store, "CHUNK", 64)
    monkeypatch.setattr(leaves, "BLOCK", room)
    write_tree(tmp_path, "tree", tree)
    assert stored_checksums(tmp_path, "tree") == leaf_checksums(tree)
