"""Files read past the page cache have the bytes that they have, wherever a read begins and ends."""

import os

import numpy as np
import pytest

from aya_jax.checkpoints import direct
from aya_jax.checkpoints.direct import PAGE, File

SIZE = 5 * PAGE + 1234


@pytest.fixture
def content(tmp_path, monkeypatch):
    """A file that is not in the page cache, and its bytes."""
    monkeypatch.setattr(direct, "LEAST", 1)
    # Several turns a read.
    monkeypatch.setattr(direct, "BUFFER", 2 * PAGE)
    written = np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8)
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.write(written.tobytes())
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path, written


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, SIZE),
        (PAGE, 3 * PAGE),
        (17, 18),
        (PAGE - 1, 2 * PAGE + 1),
        (3, SIZE - 5),
        (SIZE - 1, SIZE),
    ],
)
def test_bytes_are_those_of_the_file(content, once, start, stop):
    path, written = content
    out = np.zeros(stop - start, np.uint8)
    with File(path, once=once) as file:
        assert file.read_into(out, start) == stop - start
    np.testing.assert_array_equal(out, written[start:stop])


def test_where_the_file_ends_fewer_are_found(content):
    path, written = content
    out = np.zeros(PAGE, np.uint8)
    with File(path, once=True) as file:
        assert file.read_into(out, SIZE - 100) == 100
        assert file.read_into(out, SIZE + PAGE) == 0
    np.testing.assert_array_equal(out[:100], written[-100:])


def test_what_is_read_once_does_not_fill_the_cache(content):
    path, _ = content
    out = np.zeros(SIZE, np.uint8)
    with File(path, once=True) as file:
        if file._direct is None or file._is_cached(0, SIZE):
            pytest.skip("the file system of the temporary folder reads through the cache only")
        file.read_into(out, 0)
        assert not file._is_cached(0, SIZE)
        with File(path) as other:
            other.read_into(out, 0)
        assert file._is_cached(0, SIZE)


def test_a_file_system_without_another_way_is_read_through_the_cache(content, monkeypatch):
    path, written = content
    opened = os.open

    def refused(name, flags, *mode):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return opened(name, flags, *mode)

    monkeypatch.setattr(os, "open", refused)
    out = np.zeros(SIZE, np.uint8)
    with File(path, once=True) as file:
        assert file.read_into(out, 0) == SIZE
    np.testing.assert_array_equal(out, written)
