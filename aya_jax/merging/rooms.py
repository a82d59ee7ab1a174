"""Bytes that are used again: memory that a process has not used before is slow to fill."""

import numpy as np

# Arrays that begin at a multiple of so many bytes are computed with where they are, others are copied first.
ALIGNED = 64


class Rooms:
    """Bytes that nobody uses now. One thread takes, any may give back."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray:
        """Return at least so many bytes, uint8, with any content."""
        for i, room in enumerate(self._free):
            if len(room) >= size:
                return self._free.pop(i)
        # One that is too small would only be in the way.
        self._free[:1] = []
        room = np.empty(size + ALIGNED, np.uint8)
        return room[-room.ctypes.data % ALIGNED :][:size]

    def give(self, room: np.ndarray) -> None:
        """Take back bytes that nobody looks at any longer."""
        self._free.append(room)
