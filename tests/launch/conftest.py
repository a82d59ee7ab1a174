"""The launch scripts as they are called, with stand-ins for the cloud."""

import json
import os
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """A folder with stand-ins on the PATH of `call`; its file `calls` tells how they were called."""
    home = tmp_path / "cloud"
    (home / "bin").mkdir(parents=True)
    for name in ("gcloud", "kubectl", "xpk", "scontrol", "squeue", "srun"):
        tool = home / "bin" / name
        tool.write_text(f"#!{sys.executable}\n{STAND_IN.read_text()}")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return home


def surroundings(cloud: Path | None, environment: dict[str, str]) -> dict[str, str]:
    """Return what a script's processes see: nothing of Slurm, GPUs or other processes but what is given."""
    foreign = ("SLURM", "CUDA", "XLA", "AYA")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    if cloud is not None:
        path = f"{cloud / 'bin'}{os.pathsep}{os.environ['PATH']}"
        inherited |= {"PATH": path, "FAKE_HOME": str(cloud)}
    return inherited | environment


@pytest.fixture
def call() -> Callable[..., subprocess.CompletedProcess]:
    """`call(script, *args, cloud=None, **environment)` runs a script to its end."""

    def call(
        script: str, *args: str, cloud: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(ROOT / "launch" / script), *args],
            env=surroundings(cloud, environment),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return call


@pytest.fixture
def begin() -> Callable[..., subprocess.Popen]:
    """`begin(script, *args, until=FILE, cloud=None, **environment)` returns when FILE has a whole line.

    What the script says goes into `output`, which may be that file.
    """

    def begin(
        script: str,
        *args: str,
        until: Path,
        output: Path = Path(os.devnull),
        cloud: Path | None = None,
        **environment: str,
    ) -> subprocess.Popen:
        with output.open("w") as said:
            process = subprocess.Popen(
                ["bash", str(ROOT / "launch" / script), *args],
                env=surroundings(cloud, environment),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        for _ in range(1000):
            if until.exists() and until.read_text().endswith("\n"):
                return process
            assert process.poll() is None
            time.sleep(0.02)
        raise AssertionError(f"{until} was not written")

    return begin


@pytest.fixture
def calls(cloud: Path) -> Callable[[], list[list[str]]]:
    """`calls()` returns how the stand-ins were called so far."""

    def calls() -> list[list[str]]:
        file = cloud / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    return calls


@pytest.fixture
def shown() -> Callable[[subprocess.CompletedProcess], list[list[str]]]:
    """`shown(done)` returns the commands that a dry run printed, as a shell would read them."""

    def shown(done: subprocess.CompletedProcess) -> list[list[str]]:
        assert done.returncode == 0, done.stderr
        return [shlex.split(line) for line in done.stdout.splitlines()]

    return shown


@pytest.fixture
def fake_python(tmp_path: Path) -> Callable[[str], Path]:
    """`fake_python(body)`: an interpreter whose `-m aya_jax run` does `body`, in the test's folder."""

    def fake_python(body: str) -> Path:
        path = tmp_path / "my python"
        # It is asked for its GPUs before.
        head = f'#!/bin/bash\n[[ "$1" == -c ]] && exit 0\ncd {shlex.quote(str(tmp_path))}\n'
        path.write_text(head + body)
        path.chmod(0o755)
        return path

    return fake_python
