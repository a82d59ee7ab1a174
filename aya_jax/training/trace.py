"""A profiler trace of a few steps, asked for while a training runs."""

import logging
import signal
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax

from aya_jax.sharding.processes import is_lead

log = logging.getLogger(__name__)

REQUEST = "trace"


class Trace(AbstractContextManager["Trace"]):
    """Writes a trace of the next steps when the file `directory/trace` appears, or on SIGUSR1.

    TensorBoard (with its plugin `tensorboard-plugin-profile`) shows it beside the curves. Each request
    is answered once: the lead process removes the file when its trace is written. Every process writes
    a trace of its own devices; a signal asks only the process that gets it.

    `written` tells whether any was begun.

    Args:
      directory: of the work, where the file is looked for; none: no file is looked for.
      events: the folder of the TensorBoard events.
      steps: how many steps a trace is long.
    """

    def __init__(self, directory: Path | None, events: Path, *, steps: int) -> None:
        self._file = directory / REQUEST if directory else None
        self._events = events
        self._steps = steps
        self._reason = ""
        self._answered: int | None = None
        self._left = 0
        self._handler: Any = None
        self.written = False

    def ask(self, reason: str) -> None:
        """Trace the next steps, unless a trace is being written."""
        self._reason = reason

    def step(self, step: int, result: Any) -> None:
        """Begin or end a trace between two steps.

        Args:
          step: the step that was just dispatched.
          result: arrays that it returned; they are waited for before a trace ends.
        """
        if self._left:
            self._left -= 1
            if not self._left:
                jax.block_until_ready(result)
                self._stop()
            return
        reason, self._reason = self._reason or self._asked_by_file(), ""
        if reason:
            self._start(step, reason)

    def _asked_by_file(self) -> str:
        written = self._written()
        # The lead may not have removed the file yet that this process has answered.
        if written in (None, self._answered):
            return ""
        self._answered = written
        return f"the file {self._file}"

    def _written(self) -> int | None:
        if self._file is None:
            return None
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return None

    def _start(self, step: int, reason: str) -> None:
        try:
            jax.profiler.start_trace(str(self._events))
        except RuntimeError as error:
            log.warning("no trace is written: %s", error)
            return
        self._left, self.written = self._steps, True
        last = step + self._steps
        log.warning("tracing steps %d to %d into %s: %s", step + 1, last, self._events, reason)

    def _stop(self) -> None:
        # That a trace cannot be written is no reason to end a training.
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as error:
            log.warning("no trace was written: %s", error)
        if self._answered == self._written():
            self._remove()

    def _remove(self) -> None:
        if self._file is not None and is_lead():
            self._file.unlink(missing_ok=True)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.ask("SIGUSR1")

    def __enter__(self) -> "Trace":
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGUSR1, self._signalled)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGUSR1, self._handler)
        if self._left:
            self._left = 0
            self._stop()
        # What came too late is not to become a part of the model's folder.
        self._remove()
