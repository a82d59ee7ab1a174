"""Large files that are read once, past the page cache: to fill it takes longer than to read them."""

import ctypes
import errno
import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
# Bytes at a time. Disks read whole pages, into memory that begins at one: what is wanted is copied from there.
BUFFER = 4 << 20
# What is smaller is read through the cache.
LEAST = 1 << 20

_LIBC = ctypes.CDLL(None)
_of_thread = threading.local()


class File:
    """A file that several threads may read from; a context manager, which closes it.

    With `once` it is read past the page cache where the file system can do that, but for what the cache has already.
    """

    def __init__(self, path: Path, *, once: bool = False) -> None:
        """Open a file.

        Raises:
          OSError: it cannot be opened.
        """
        self.descriptor = os.open(path, os.O_RDONLY)
        self._direct: int | None = None
        if once and hasattr(os, "O_DIRECT"):
            # A file system that knows no other way than the cache refuses.
            with suppress(OSError):
                self._direct = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def read_into(self, target: Any, start: int) -> int:
        """Fill bytes with those of the file from a place on.

        Args:
          target: a buffer.
          start: the place.

        Returns:
          How many there are, fewer than asked for where the file ends.

        Raises:
          OSError: they cannot be read.
        """
        out = np.frombuffer(target, np.uint8)
        direct = self._direct
        if direct is not None and self._is_cached(start, len(out)):
            direct = None
        done = 0
        while done < len(out):
            if direct is not None:
                got = self._read_pages(direct, out[done:], start + done)
            else:
                got = os.preadv(self.descriptor, [out[done:]], start + done)
            if not got:
                break
            done += got
        return done

    def _read_pages(self, direct: int, out: np.ndarray, start: int) -> int:
        """Fill the beginning of `out`, as `os.preadv` does, past the cache."""
        buffer = getattr(_of_thread, "buffer", None)
        if buffer is None:
            buffer = _of_thread.buffer = mmap.mmap(-1, BUFFER)
        before = start % PAGE
        size = min(BUFFER, -(-(before + len(out)) // PAGE) * PAGE)
        try:
            found = os.preadv(direct, [memoryview(buffer)[:size]], start - before)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Its disk has larger pages.
            return os.preadv(self.descriptor, [out], start)
        count = max(0, min(found - before, len(out)))
        out[:count] = np.frombuffer(buffer, np.uint8, count, before)
        return count

    def _is_cached(self, start: int, size: int) -> bool:
        """Whether bytes are few, or the page cache has at least half of them, or they are not all in the file."""
        first = start // PAGE * PAGE
        size += start - first
        if size < LEAST or os.fstat(self.descriptor).st_size < first + size:
            return True
        pages = np.zeros(-(-size // PAGE), np.uint8)
        with mmap.mmap(self.descriptor, size, access=mmap.ACCESS_READ, offset=first) as view:
            place = np.frombuffer(view, np.uint8).ctypes.data
            ended = _LIBC.mincore(ctypes.c_void_p(place), ctypes.c_size_t(size), pages.ctypes)
        return ended != 0 or 2 * int((pages & 1).sum()) >= len(pages)
