"""Strikes a process at the n-th thing that it does to the files of a folder."""

import errno
import os
import signal
import sys
import threading
from pathlib import Path

# What Python tells of: https://docs.python.org/3/library/audit_events.html
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate"}
# What a full disk refuses: these, and to write what was written before to the disk.
NEEDS_SPACE = {"open", "os.mkdir", "fsync"}


class Strike:
    """Counts what the process does to the files of a folder from now on, and strikes once.

    Args:
      how: `kill` (SIGKILL), `term` (SIGTERM), `full` (from then on nothing more can be written), or
        `count`, which strikes never.
      at: the number of the event to strike at, from 1. The event itself does not happen any more,
        but for `term`.
      folder: the events in it and in those beneath it count; not reading.
    """

    def __init__(self, how: str, at: int, folder: Path) -> None:
        self.how, self.at, self.folder = how, at, folder.absolute()
        self.count = 0
        self._lock = threading.Lock()
        self._fsync = os.fsync
        os.fsync = self._synced
        sys.addaudithook(self._heard)

    def _synced(self, descriptor) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        self._event("fsync", os.readlink(f"/proc/self/fd/{number}"))
        self._fsync(descriptor)

    def _heard(self, event: str, arguments) -> None:
        if event not in EVENTS:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        self._event(event, arguments[0])

    def _event(self, event: str, path) -> None:
        if isinstance(path, int):
            return
        place = Path(os.path.abspath(os.fsdecode(path)))
        if place != self.folder and self.folder not in place.parents:
            return
        with self._lock:
            self.count += 1
            number = self.count
        if number == self.at and self.how in ("kill", "term"):
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[self.how])
        if self.how == "full" and number >= self.at and event in NEEDS_SPACE:
            raise OSError(errno.ENOSPC, "No space left on device", path)
