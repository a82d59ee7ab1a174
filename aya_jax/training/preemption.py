"""SIGTERM: a training saves and ends, anything else ends; in either case the same command goes on."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType

import jax

from aya_jax.sharding.processes import said_first

# The exit status of a process that a SIGTERM ended (EX_TEMPFAIL of sysexits.h): run it again.
PREEMPTED = 75
# Outside of trainings: how long the main thread may be at compiled code before the process ends anyway.
GRACE = 10.0
# Where nobody could hear of it, how long until it is said again.
MOMENT = 0.05
# Steps that processes may be apart: the loop has no more than so many under way.
APART = 2


class Preempted(BaseException):
    """A SIGTERM ended the work. As KeyboardInterrupt it is no `Exception`, so nothing swallows it."""


_asked = False
_training = 0
_numbers = count()


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    if not _training:
        raise Preempted("what is whole is kept")


@contextmanager
def heard() -> Iterator[None]:
    """Inside, a SIGTERM raises `Preempted`, within a training only when that was saved.

    For the main thread. Where this is at compiled code and does not come to hear of it, the process
    ends after `GRACE` seconds with status 75, unless a training is at work.
    """
    global _asked
    ended = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def insist() -> None:
        # The interpreter writes a signal's number at once, and calls its handler when it can.
        while (told := reader.recv(1)) and told[0] != signal.SIGTERM:
            pass
        if told and not ended.wait(GRACE) and not _training:
            os.write(
                2, b"aya: SIGTERM; what is whole is kept; the same command goes on from here\n"
            )
            os._exit(PREEMPTED)

    def say_again() -> None:
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    def ignored(told: "sys.UnraisableHookArgs") -> None:
        # In a callback of the garbage collector's, say, nothing that is raised goes any further.
        if told.exc_type is not Preempted:
            return hook(told)
        again = threading.Timer(MOMENT, say_again)
        again.daemon = True
        again.start()

    threading.Thread(target=insist, name="preemption", daemon=True).start()
    hook, sys.unraisablehook = sys.unraisablehook, ignored
    handler = signal.signal(signal.SIGTERM, _on_signal)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        _asked = False
        ended.set()
        sys.unraisablehook = hook
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, handler)
        writer.close()


@contextmanager
def until_saved() -> Iterator[Callable[[int], bool]]:
    """Inside, a SIGTERM waits until the training that yields to it has saved.

    Yields a function that tells whether to save and end before a step, the same in all processes. It
    must be asked before every step, and step n may be asked for only when all processes are known to
    have begun step n - `APART`.

    Raises:
      Preempted: at the end, if a SIGTERM came and nothing else was raised.
    """
    global _training
    name = f"preempted/{next(_numbers)}"
    apart = APART if jax.process_count() > 1 else 0

    def due(step: int) -> bool:
        # Whoever is told first names a step that nobody can have passed.
        agreed = said_first(name, step + apart if _asked else None)
        return agreed is not None and step >= agreed

    _training += 1
    try:
        yield due
    finally:
        _training -= 1
    if _asked and not _training:
        raise Preempted("the training was saved")
