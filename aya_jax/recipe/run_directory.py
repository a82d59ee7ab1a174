"""The run directory: who owns it, which stages are whole, and what made them."""

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from aya_jax.data.files import atomic_write, commit_directory, told_plainly
from aya_jax.errors import AyaError
from aya_jax.sharding.processes import by_lead

MARK = "fingerprint"
# How long a network file system may take to show a host what another made, in seconds.
SHOWN = 90.0


def require_seen(path: Path) -> None:
    """Wait until this process sees what the lead has made.

    Raises:
      AyaError: it does not.
    """
    end = time.monotonic() + SHOWN
    while not path.exists():
        if time.monotonic() > end:
            raise AyaError(
                f"{path}: process 0 made it and process {jax.process_index()} does not see it; give a "
                "place on a file system that all hosts share"
            )
        if path.parent.is_dir():
            # Reading the folder makes a network file system ask for it anew.
            os.listdir(path.parent)
        time.sleep(0.2)


def open_work(partial: Path, fingerprint: str) -> bool:
    """Make sure that `partial` is a folder for the work that `fingerprint` names.

    Returns whether a killed attempt at the same work left it; what any other work left is removed. All
    processes of a run call it.
    """
    went_on = by_lead(lambda: _open_work(partial, fingerprint))
    require_seen(partial / MARK)
    return went_on


def _open_work(partial: Path, fingerprint: str) -> bool:
    mark = partial / MARK
    with told_plainly(partial):
        if mark.exists() and mark.read_text() == fingerprint:
            _clear_half_written(partial)
            return True
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    try:
        atomic_write(mark, fingerprint)
    except AyaError:
        partial.rmdir()
        raise
    return False


def _clear_half_written(folder: Path) -> None:
    """Remove what a kill left of files and folders that were not whole: a checkpoint may be large."""
    for left in list(folder.rglob(".*.tmp")):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


class RunDirectory:
    """`run.json`, `stages/NAME` (whole because renamed there), `metrics/`, and a lock.

    Use as a context manager: the lock is held inside, and the system drops it if we are killed. All
    processes of a run have one; the lead holds the lock and writes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._lock: int | None = None
        self.state: dict[str, Any] = {"stages": {}}

    def __enter__(self) -> "RunDirectory":
        self.state = by_lead(self._open)
        require_seen(self.path / "stages")
        return self

    def _open(self) -> dict[str, Any]:
        """Take the lock, and return what `run.json` holds."""
        with told_plainly(self.path):
            (self.path / "stages").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._read()
        except BlockingIOError:
            os.close(self._lock)
            raise AyaError(
                f"{self.path}: another run is at work in this directory; "
                "wait for it to end or give another --run_dir"
            ) from None
        except AyaError:
            os.close(self._lock)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _read(self) -> dict[str, Any]:
        """Return what `run.json` holds, checked."""
        place = self.path / "run.json"
        if not place.exists():
            return {"stages": {}}
        reason = "it holds no stages"
        try:
            state = json.loads(place.read_text("utf-8"))
            if all(isinstance(entry["fingerprint"], str) for entry in state["stages"].values()):
                return state
        except (KeyError, TypeError, AttributeError):
            pass
        except (OSError, ValueError) as error:
            reason = str(error)
        raise AyaError(f"{place}: cannot be read ({reason}); remove it to start over")

    def stage_path(self, name: str) -> Path:
        """Return the folder of a whole stage."""
        return self.path / "stages" / name

    def _old(self, name: str) -> Path:
        """Return where a stage's old folder is put before it is removed."""
        return self.path / "stages" / f"{name}.old"

    def entry(self, name: str) -> dict[str, Any]:
        """Return what `run.json` knows of a stage that is whole, {} otherwise."""
        return by_lead(
            lambda: self.state["stages"].get(name, {}) if self.stage_path(name).is_dir() else {}
        )

    def open_stage(self, name: str, fingerprint: str) -> Path:
        """Return the folder to work in; what a killed attempt of the same stage left is kept.

        Raises:
          AyaError: the disk is full or the directory not writable.
        """
        partial = self.path / "stages" / f"{name}.partial"
        by_lead(lambda: shutil.rmtree(self._old(name), ignore_errors=True))
        if not open_work(partial, fingerprint):
            # Curves of other settings would be drawn into those of this attempt.
            by_lead(lambda: shutil.rmtree(self.path / "metrics" / name, ignore_errors=True))
        return partial

    def close_stage(self, name: str, entry: dict[str, Any]) -> None:
        """Rename the finished folder into place and note what made it.

        The note comes first: a kill between the two leaves a stage without its folder, which is
        not whole and runs again.
        """
        self.state["stages"][name] = entry
        by_lead(lambda: self._close_stage(name))
        require_seen(self.stage_path(name))

    def _close_stage(self, name: str) -> None:
        place = self.stage_path(name)
        with told_plainly(place):
            if place.exists():
                # Half a folder must never stand under a stage's name: out of the way first.
                place.rename(self._old(name))
                shutil.rmtree(self._old(name))
            self._save()
            commit_directory(place.with_name(f"{name}.partial"), place)

    def save(self) -> None:
        """Write `run.json`."""
        by_lead(self._save)

    def _save(self) -> None:
        atomic_write(
            self.path / "run.json", json.dumps(self.state, indent=1, sort_keys=True) + "\n"
        )
