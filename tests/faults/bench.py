"""Runs what the faults strike, in processes that start quickly, and tells how they ended."""

import concurrent.futures.thread
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from strike import Strike
from subjects import Subject

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # Quickly compiled: what the programs compute is little.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
# What has not ended after so many seconds is stuck.
PATIENCE = 900.0


class Ended(NamedTuple):
    """How a process ended: its status, below 0 that of a signal, what it said on stderr, and when."""

    status: int
    told: str
    at: float


class Broken(Exception):
    """A promise of docs/reliability.md is."""


class Unbroken(NamedTuple):
    """An unbroken run: what it made, the events of each process, its seconds and its bytes on the disk."""

    content: dict[str, str]
    events: list[int]
    seconds: float
    size: int


class Bench:
    """Runs subjects in children of a process that has imported everything already."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.shelf = place / "shelf"
        self._unbroken: dict[str, Unbroken] = {}
        os.environ.update(ENVIRONMENT, JAX_COMPILATION_CACHE_DIR=str(place / "programs"))
        # Imported, and nothing started: what is forked now is as good as a new process.
        import aya_jax.cli
        import aya_jax.recipe.run
        import aya_jax.recipe.verbs  # noqa: F401

        if not self.shelf.exists():
            self.must(self.child(self._make_shelf))

    def _make_shelf(self) -> None:
        from shelf import Shelf

        self.shelf.mkdir()
        Shelf(self.shelf)

    def child(self, work: Callable[[], int | None], **environment: str) -> int:
        """Fork a child that ends with what `work` returns; its stderr goes to a file."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            os.environ.update(environment)
            told = os.open(self.place / f"{os.getpid()}.err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(told, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.chdir(ROOT)
            status = work() or 0
            # As at the end of a program: pools of threads end their work first.
            concurrent.futures.thread._python_exit()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def wait(self, *pids: int) -> list[Ended]:
        """Wait for the end of children."""
        deadline, ended = time.monotonic() + PATIENCE, {}
        while len(ended) < len(pids):
            for pid in pids:
                if pid in ended or not (done := os.waitpid(pid, os.WNOHANG))[0]:
                    continue
                told = self.place / f"{pid}.err"
                text = told.read_text() if told.exists() else ""
                told.unlink(missing_ok=True)
                ended[pid] = Ended(os.waitstatus_to_exitcode(done[1]), text, time.monotonic())
            if time.monotonic() > deadline:
                for pid in pids:
                    if pid not in ended:
                        os.kill(pid, signal.SIGKILL)
                raise Broken(f"it did not end in {PATIENCE:.0f} s")
            time.sleep(0.005)
        return [ended[pid] for pid in pids]

    def must(self, *pids: int) -> None:
        """Wait for children that have no reason to fail."""
        ended = self.wait(*pids)
        if any(process.status for process in ended):
            raise Broken("; ".join(f"status {p.status}: {p.told[-3000:]}" for p in ended))

    def start(
        self, subject: Subject, folder: Path, how: str = "count", at: int = 0, struck: int = 0
    ) -> list[int]:
        """Start a subject, one of its processes to be struck; return its processes."""
        command = subject.command(self.shelf, folder)
        folder.mkdir(parents=True, exist_ok=True)

        def of(process: int) -> Callable[[], int]:
            def work() -> int:
                from aya_jax import cli

                strike = Strike(how if process == struck else "count", at, folder)
                status = cli.main(command)
                folder.with_suffix(f".{process}").write_text(str(strike.count))
                return status

            return work

        if subject.processes == 1:
            return [self.child(of(0))]
        # It stays ours, so that nobody else gets it, and the coordinator may share it.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._port.bind(("", 0))
        address = f"127.0.0.1:{self._port.getsockname()[1]}"
        many = {"AYA_PROCESSES": str(subject.processes), "AYA_COORDINATOR": address}
        return [
            self.child(of(process), **many, AYA_PROCESS=str(process))
            for process in range(subject.processes)
        ]

    def content(self, subject: Subject, folder: Path) -> dict[str, str]:
        """Return what a subject has made, read in a child."""
        place = folder.with_suffix(".json")

        def work() -> None:
            place.write_text(json.dumps(subject.content(folder)))

        self.must(self.child(work))
        return json.loads(place.read_text())

    def unbroken(self, subject: Subject) -> Unbroken:
        """Return what an unbroken run is like."""
        if subject.name not in self._unbroken:
            # The first one compiles.
            for attempt in ("first", "unbroken"):
                folder, started = self.place / attempt / subject.name, time.monotonic()
                shutil.rmtree(folder, ignore_errors=True)
                self.must(*self.start(subject, folder))
                seconds = time.monotonic() - started
            events = [
                int(folder.with_suffix(f".{process}").read_text())
                for process in range(subject.processes)
            ]
            size = sum(file.stat().st_size for file in folder.rglob("*"))
            content = self.content(subject, folder)
            self._unbroken[subject.name] = Unbroken(content, events, seconds, size)
        return self._unbroken[subject.name]


def plain(ended: Ended) -> bool:
    """Whether a failure is told to a user in one line, warnings before it apart."""
    lines = [line for line in ended.told.splitlines() if not line.startswith("WARNING")]
    return ended.status == 1 and len(lines) == 1 and lines[0].startswith("aya ")
