"""Rows on a disk: what was written is what is read, and nothing half-written counts."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from aya_jax.data.loader import Loader
from aya_jax.data.row_set import LIST, is_whole, open_rows, write_rows
from aya_jax.errors import AyaError


def arrays(count=50):
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, 99, (count, 7)).astype(np.int32),
        "mask": rng.random((count, 7)) < 0.5,
        "each": rng.random(count).astype(np.float32),
    }


def parts(whole, *cuts):
    for start, stop in zip((0, *cuts), (*cuts, None), strict=True):
        yield {name: array[start:stop] for name, array in whole.items()}


def test_what_was_written_is_what_is_read(tmp_path):
    whole, place = arrays(), tmp_path / "work" / "rows"
    write_rows(place, "key", parts(whole, 11, 12, 49))
    found = open_rows(place)
    assert {name: (a.dtype, a.shape) for name, a in found.items()} == {
        name: (a.dtype, a.shape) for name, a in whole.items()
    }
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array)
        with pytest.raises(ValueError, match="read-only"):
            found[name][0] = 0
    assert is_whole(place, "key") and not is_whole(place, "another key")
    # Batches of arrays on a disk are those of arrays in memory.
    for step in (0, 9):
        batches = [Loader(a, batch_size=8, seed=1)[step] for a in (whole, found)]
        for name in whole:
            np.testing.assert_array_equal(batches[0][name], batches[1][name])
            assert type(batches[1][name]) is np.ndarray


def test_any_damage_is_noticed(tmp_path):
    place = tmp_path / "rows"
    assert not is_whole(place, "key")
    for name in ("tokens", "each", LIST):
        for damage in (
            lambda data: data[:-1],
            lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
            lambda data: b"",
            None,
        ):
            write_rows(place, "key", parts(arrays(), 20))
            assert is_whole(place, "key")
            file = place / name
            if damage is None:
                file.unlink()
            else:
                file.write_bytes(damage(file.read_bytes()))
            assert not is_whole(place, "key")


def test_what_fails_half_way_leaves_what_was_there(tmp_path):
    place = tmp_path / "rows"

    def failing():
        yield from parts(arrays(), 20)
        raise AyaError("record 'x': too long")

    with pytest.raises(AyaError, match="record 'x'"):
        write_rows(place, "key", failing())
    assert not list(tmp_path.iterdir())
    write_rows(place, "old", parts(arrays()))
    with pytest.raises(AyaError, match="record 'x'"):
        write_rows(place, "key", failing())
    assert is_whole(place, "old") and [p.name for p in tmp_path.iterdir()] == ["rows"]
    write_rows(place, "key", parts(arrays(3)))
    assert is_whole(place, "key") and len(open_rows(place)["each"]) == 3


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from aya_jax.data.row_set import write_rows

def parts():
    for _ in range(3):
        yield {"tokens": np.ones((1000, 64), np.int32)}
    os.kill(os.getpid(), signal.SIGKILL)

write_rows(Path(sys.argv[1]), "key", parts())
"""


@pytest.mark.slow
def test_what_is_killed_half_way_is_not_taken_for_whole(tmp_path):
    place = tmp_path / "rows"
    killed = subprocess.run([sys.executable, "-c", KILLED, place])
    assert killed.returncode == -9
    assert not is_whole(place, "key") and not place.exists()
    write_rows(place, "key", parts(arrays()))
    assert is_whole(place, "key")


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("aya_jax.data.row_set.open", lambda *a: Full(open(*a)), raising=False)
    with pytest.raises(AyaError, match="rows: the disk is full"):
        write_rows(tmp_path / "rows", "key", parts(arrays()))
    assert not list(tmp_path.iterdir())


def test_a_batch_reads_no_more_than_its_rows(tmp_path):
    """Rows of 64 MB; a batch of two of them needs little more than its own memory."""
    row = np.arange(1024, dtype=np.int32)[None]
    many = ({"tokens": np.broadcast_to(row + i, (1024, 1024))} for i in range(16))
    tracemalloc.start()
    write_rows(tmp_path / "rows", "key", many)
    loader = Loader(open_rows(tmp_path / "rows"), batch_size=2, seed=0)
    batch = loader[3]["tokens"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(batch, row + loader.rows(3)[:, None] // 1024)
    assert peak < 10 * 2**20
