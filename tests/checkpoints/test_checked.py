"""Leaves whose chunks are files: a flipped bit of any file is found as the file is first read from."""

import numpy as np
import pytest

from aya_jax.checkpoints import slices
from aya_jax.checkpoints.checked import CheckedLeaves
from aya_jax.errors import AyaError

LEAF = ("a",)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Three layers of 40 rows, 25 to a file: the second file of each has 10 rows that no row is in."""
    monkeypatch.setattr(slices, "CHUNK", 700)
    rows = np.arange(3 * 40 * 7, dtype=np.float32).reshape(3, 40, 7)
    with slices.write_slices(
        tmp_path, "params", {LEAF: slices.Leaf(rows.dtype, rows.shape, 1)}
    ) as stores:
        stores[LEAF].write(rows).result()
    return tmp_path, rows


@pytest.mark.parametrize(("first", "last"), [(0, 40), (0, 25), (25, 40), (3, 30), (26, 39)])
def test_rows_are_those_that_were_written(tree, first, last):
    folder, rows = tree
    leaves = CheckedLeaves(folder, "params")
    for layer in range(3):
        read = leaves.read(LEAF, (layer,), first, last)
        np.testing.assert_array_equal(read, rows[layer, first:last])


@pytest.mark.parametrize("place", [0, 419, 420, 699])
@pytest.mark.parametrize(("first", "last"), [(0, 40), (25, 40), (30, 31)])
def test_a_flipped_bit_is_found_behind_the_last_row_too(tree, place, first, last):
    folder, _ = tree
    file = folder / "params" / "a" / "1.1.0"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    leaves = CheckedLeaves(folder, "params")
    leaves.read(LEAF, (0,), first, last)
    with pytest.raises(AyaError, match=r"1\.1\.0: is damaged"):
        leaves.read(LEAF, (1,), first, last)
