"""Real processes on this machine, with virtual devices of the CPU, as a run on several hosts has them."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """A process that has ended."""

    status: int
    out: str
    err: str


class Hosts:
    """Starts the same command in several processes; they share compiled programs on the disk.

    Programs are compiled quickly and not to be quick: what they compute is little.
    """

    def __init__(self, cache):
        self.environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        self._ports = []

    def start(self, command, *, count, devices):
        """Start `command` (after `python`) in `count` processes with `devices` devices altogether."""
        told = {
            "AYA_PROCESSES": str(count),
            "AYA_COORDINATOR": f"127.0.0.1:{self._port()}",
            "JAX_NUM_CPU_DEVICES": str(devices // count),
        }
        return [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                env={**self.environment, **told, "AYA_PROCESS": str(process)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in range(count)
        ]

    def _port(self):
        """Return a port that nobody else gets: it stays ours, and the coordinator may share it."""
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("", 0))
        self._ports.append(held)
        return held.getsockname()[1]

    def run(self, command, *, count, devices):
        """Run as `start` does; return how each process ended."""
        started = self.start(command, count=count, devices=devices)
        try:
            texts = [process.communicate(timeout=300) for process in started]
        finally:
            for process in started:
                process.kill()
        return [
            Ended(process.returncode, *text) for process, text in zip(started, texts, strict=True)
        ]


@pytest.fixture(scope="session")
def hosts(tmp_path_factory):
    """A `Hosts`."""
    return Hosts(tmp_path_factory.mktemp("programs"))
