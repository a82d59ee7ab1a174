"""`aya run` as a process of its own, and one unbroken run of the micro recipe that all tests share."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gin
import pytest

from aya_jax import cli
from aya_jax.checkpoints.model_directory import load_params
from aya_jax.checkpoints.store import leaf_checksums

ROOT = Path(__file__).resolve().parents[2]
MICRO = "tests/recipe/micro.gin"


class Aya:
    """Starts `python -m aya_jax run`. The processes share compiled programs, and so start quickly."""

    def __init__(self, cache):
        self.environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    @staticmethod
    def command(run_dir, *bindings, recipe=MICRO):
        given = [word for binding in bindings for word in ("--gin_bindings", binding)]
        return [
            *(sys.executable, "-m", "aya_jax", "run", str(recipe)),
            *("--run_dir", str(run_dir), *given),
        ]

    def start(self, run_dir, *bindings, stdout=subprocess.DEVNULL):
        """Start a run and return its process."""
        command = self.command(run_dir, *bindings)
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=stdout,
            stderr=subprocess.STDOUT,
        )

    def run(self, run_dir, *bindings, recipe=MICRO):
        """Run to the end; return the finished process, its text and errors apart."""
        return subprocess.run(
            self.command(run_dir, *bindings, recipe=recipe),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
        )

    def succeed(self, run_dir, *bindings, recipe=MICRO):
        """Run to the end, which must be a good one; return what it printed."""
        done = self.run(run_dir, *bindings, recipe=recipe)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def refused(self, run_dir, *bindings, recipe=MICRO):
        """Run what must fail with one line on stderr; return the line."""
        done = self.run(run_dir, *bindings, recipe=recipe)
        assert done.returncode == 1, (done.stdout, done.stderr)
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("aya run: "), done.stderr
        return lines[0]


class Run:
    """What a run directory holds."""

    def __init__(self, path):
        self.path = Path(path)

    @property
    def stages(self):
        """The recipe's stages, in order."""
        return json.loads((self.path / "run.json").read_text())["recipe"]["stages"]

    @property
    def seconds(self):
        """How long each stage took."""
        entries = json.loads((self.path / "run.json").read_text())["stages"]
        return {name: entry["seconds"] for name, entry in entries.items()}

    @property
    def models(self):
        """The stages whose result is a model directory."""
        return [name for name in self.stages if (self.path / "stages" / name / "params").is_dir()]

    def records(self, stage):
        lines = (self.path / "stages" / stage / "records.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def report(self):
        """`report.json` but for its times."""
        report = json.loads((self.path / "report.json").read_text("utf-8"))
        for stage in report["stages"]:
            assert stage.pop("seconds") >= 0
        return report

    def parameters(self):
        """The checksum of every leaf of every model, of the bytes that are on the disk now."""
        return {
            name: leaf_checksums(load_params(self.path / "stages" / name)) for name in self.models
        }

    def files(self):
        """The content of every file of every stage, but for the folders that Orbax writes."""
        stages = self.path / "stages"
        return {
            file.relative_to(stages).as_posix(): file.read_bytes()
            for file in sorted(stages.rglob("*"))
            if file.is_file()
            and "params" not in file.relative_to(stages).parts
            and file.name != "params.checksums.json"
        }


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all workers of this test session share."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    place = base / "recipe"
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture(scope="session")
def aya(shared):
    return Aya(shared / "programs")


@pytest.fixture(scope="session")
def unbroken(shared, aya):
    """A finished run of the micro recipe, made once; tests that change it copy it."""
    place, whole = shared / "unbroken", shared / "unbroken.told"
    with open(shared / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(place, ignore_errors=True)
            told = aya.succeed(place)
            whole.write_text(told, "utf-8")
    run = Run(place)
    run.told = whole.read_text("utf-8")
    return run


@pytest.fixture
def copied(unbroken, tmp_path):
    """A copy of the unbroken run, to be changed."""
    return Run(shutil.copytree(unbroken.path, tmp_path / "run"))


@pytest.fixture(scope="session")
def run_of():
    """Return the `Run` at a path."""
    return Run


@pytest.fixture
def aya_here(capsys):
    """Run `aya run` in this process, for what ends before much is computed; return its line of error."""

    def refused(run_dir, *bindings, recipe=MICRO):
        gin.clear_config()
        try:
            status = cli.main(Aya.command(run_dir, *bindings, recipe=recipe)[3:])
        finally:
            gin.clear_config()
        lines = capsys.readouterr().err.splitlines()
        assert status == 1
        assert len(lines) == 1 and lines[0].startswith("aya run: "), lines
        return lines[0]

    return refused
