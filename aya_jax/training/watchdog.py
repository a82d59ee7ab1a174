"""Ends a process whose training is stuck, and leaves the stacks of all its threads."""

import faulthandler
import os
import threading
import time
from pathlib import Path
from types import TracebackType

import gin

# The exit status of a stuck process: the same command goes on from the last checkpoint.
STUCK = 76
# By its number: what has taken the place of Python's own may want its lock.
STDERR = 2


class Watchdog:
    """A context manager; unless `beat` is called every `limit` seconds, the process ends.

    It then writes the stacks of all threads to stderr and to `file`, and ends with status 76 whatever
    the main thread is at. It works by a thread of its own: code that never releases Python's lock
    (compiled programs and collectives do) is not noticed.

    Args:
      file: where the stacks go.
      limit: seconds; None for no watch.
    """

    def __init__(self, file: Path, limit: float | None) -> None:
        self._file = file
        self._limit = limit
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.beat(0)

    def beat(self, step: int) -> None:
        """Tell that `step` is done."""
        self._step, self._last = step, time.monotonic()

    def _watch(self) -> None:
        assert self._limit is not None
        while not self._ended.wait(max(self._last + self._limit - time.monotonic(), 0.0)):
            if time.monotonic() >= self._last + self._limit:
                self._end()

    def _end(self) -> None:
        text = (
            f"aya: nothing was heard of the training for {self._limit:g} s after step {self._step} "
            f"(watchdog.limit); all stacks are in {self._file}; the same command goes on\n"
        )
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("w") as file:
                file.write(text)
                file.flush()
                faulthandler.dump_traceback(file)
        finally:
            faulthandler.dump_traceback(STDERR)
            os.write(STDERR, text.encode())
            os._exit(STUCK)

    def __enter__(self) -> "Watchdog":
        self.beat(0)
        if self._limit is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()


@gin.configurable
def watchdog(file: Path, *, limit: float | None = 1800.0) -> Watchdog:
    """Return the watch over a training.

    Args:
      file: where the stacks go.
      limit: seconds without a finished step after which a training is stuck. The first step is
        compiled in that time and a checkpoint copied off the devices. None for no watch.
    """
    return Watchdog(file, limit)
