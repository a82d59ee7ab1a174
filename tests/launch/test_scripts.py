"""All launch scripts alike: bash and shellcheck read them, their help is whole, mistakes are one line."""

import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = (
    *("gpu_host.sh", "gpu_debug.sh", "slurm.sbatch", "tpu_pod.sh", "gke.sh", "xpk.sh"),
    *("supervise.sh", "bucket_run.sh", "detached.sh"),
)
TPU = ("--name", "aya", "--zone", "z", "--type", "v5litepod-8")
GKE = ("--name", "aya", "--image", "i", "--claim", "c", "--chips", "4")
GKE_TPU = (*GKE, "--tpu", "tpu-v5-lite-podslice", "--topology", "2x4")
XPK = ("--name", "aya", "--cluster", "c", "--type", "v5p-128", "--image", "i")


@pytest.mark.parametrize("name", [*SCRIPTS, "common.sh"])
def test_bash_can_read_it(name):
    done = subprocess.run(["bash", "-n", str(LAUNCH / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", [*SCRIPTS, "common.sh"])
def test_shellcheck_finds_nothing(name):
    done = subprocess.run(
        [Path(sysconfig.get_path("scripts"), "shellcheck"), "-x", "-s", "bash", f"launch/{name}"],
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_every_script_is_known_here():
    found = {path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")}
    assert found == {*SCRIPTS, "common.sh"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option(script, call):
    done = call(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:")
    text = (LAUNCH / script).read_text()
    assert "set -euo pipefail" in text
    # Of a script that reads its options itself, those of its `case`.
    known = re.search(r"^options '([a-z ]*)' '([a-z ]*)'", text, re.MULTILINE)
    words = f"{known[1]} {known[2]} help dry-run".split() if known else []
    taken = {f"--{word}" for word in words} or set(
        re.findall(r"^    (--[a-z-]+)", text, re.MULTILINE)
    )
    assert {"--help", "--dry-run"} <= taken
    assert taken - {"--"} <= set(re.findall(r"--[a-z-]+", done.stdout))


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_takes_a_project_or_a_secret(script):
    """They come from the environment or the tools' own configuration, and so into no history."""
    text = (LAUNCH / script).read_text()
    assert not re.search(r"--(project|token|key|password|secret)\b", text)


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("gpu_host.sh", [], "CONFIG is missing"),
        ("gpu_host.sh", ["a.gin"], "RUN_DIR is missing"),
        ("gpu_host.sh", ["a.gin", "b", "c"], "unexpected 'c'"),
        ("gpu_host.sh", ["--gpus"], "--gpus needs a value"),
        ("gpu_host.sh", ["--gpus", "0;1", "a.gin", "b"], "not '0;1'"),
        ("gpu_host.sh", ["--gpus", "0,1,2,3,4,5,6,7,8", "a.gin", "b"], "1 to 8 numbers"),
        ("gpu_host.sh", ["--memory", "92", "a.gin", "b"], "--memory must be a share"),
        ("gpu_host.sh", ["--gpu", "0", "a.gin", "b"], "unknown option '--gpu'"),
        ("gpu_host.sh", ["a.gin", "gs://x/y"], "RUN_DIR must be a folder"),
        ("gpu_debug.sh", [], "CONFIG is missing"),
        ("gpu_debug.sh", ["none.gin", "b"], "none.gin cannot be read"),
        ("gpu_debug.sh", ["--gpu", "0,1", "a.gin", "b"], "must be a whole number"),
        ("supervise.sh", [], "COMMAND is missing"),
        ("supervise.sh", ["--restarts", "x", "--", "true"], "must be a whole number"),
        ("supervise.sh", ["true"], "the command comes after --"),
        ("detached.sh", [], "FOLDER is missing"),
        ("detached.sh", ["a"], "COMMAND is missing"),
        ("detached.sh", ["a", "b", "--", "true"], "unexpected 'b'"),
        ("bucket_run.sh", [], "BUCKET_DIR is missing"),
        ("bucket_run.sh", ["gs://a"], "RUN_DIR is missing"),
        ("bucket_run.sh", ["gs://a", "b"], "COMMAND is missing"),
        ("bucket_run.sh", ["a", "b", "--", "true"], "must begin with gs://"),
        ("tpu_pod.sh", [], "first argument is run, create"),
        ("tpu_pod.sh", ["start", *TPU], "first argument is run, create"),
        ("tpu_pod.sh", ["run"], "--name is missing"),
        ("tpu_pod.sh", ["run", "--name", "a"], "--zone is missing"),
        ("tpu_pod.sh", ["create", "--name", "a", "--zone", "z"], "--type is missing"),
        ("tpu_pod.sh", ["run", *TPU], "CONFIG is missing"),
        ("tpu_pod.sh", ["run", *TPU, "a.gin"], "RUN_DIR is missing"),
        ("tpu_pod.sh", ["run", *TPU, "/a.gin", "b"], "must be a path in the project"),
        ("tpu_pod.sh", ["run", *TPU, "--type", "v5p", "a.gin", "b"], "--type must be like"),
        ("tpu_pod.sh", ["run", *TPU, "--type", "tpu7x-8", "a.gin", "b"], "use launch/gke.sh"),
        ("tpu_pod.sh", ["run", *TPU, "--type", "v5p-16", "a.gin", "gs://b/r"], "all hosts see"),
        ("tpu_pod.sh", ["run", *TPU, "--slices", "2", "a.gin", "runs/r"], "all hosts see"),
        ("tpu_pod.sh", ["run", *TPU, "--slices", "0", "a.gin", "b"], "1 or more"),
        ("tpu_pod.sh", ["run", *TPU, "--nfs", "s:/x", "a.gin", "/b"], "must be under /mnt/aya"),
        ("tpu_pod.sh", ["run", *TPU, "--nfs", "x", "a.gin", "/mnt/aya/b"], "must be SERVER:/PATH"),
        ("tpu_pod.sh", ["logs", *TPU, "a.gin", "b"], "logs takes no CONFIG"),
        ("gke.sh", [], "--name is missing"),
        ("gke.sh", ["--name", "aya"], "--image is missing"),
        ("gke.sh", ["--name", "aya", "--image", "i"], "--claim is missing"),
        ("gke.sh", [*GKE, "a.gin", "/mnt/aya/b"], "--tpu or --gpu is missing"),
        ("gke.sh", [*GKE_TPU, "--gpu", "x", "a.gin", "/mnt/aya/b"], "exclude each other"),
        ("gke.sh", [*GKE, "--tpu", "x", "a.gin", "/mnt/aya/b"], "--topology is missing"),
        ("gke.sh", [*GKE_TPU, "--topology", "8", "a.gin", "/mnt/aya/b"], "--topology must be like"),
        ("gke.sh", [*GKE_TPU, "--topology", "3x3", "a.gin", "/mnt/aya/b"], "do not divide"),
        ("gke.sh", [*GKE_TPU, "--hosts", "4", "a.gin", "/mnt/aya/b"], "--hosts is for GPUs"),
        ("gke.sh", [*GKE, "--gpu", "x", "--slices", "2", "a", "/mnt/aya/b"], "are for TPUs"),
        ("gke.sh", [*GKE_TPU, "a.gin"], "RUN_DIR is missing"),
        ("gke.sh", [*GKE_TPU, "a.gin", "b"], "must be under /mnt/aya"),
        ("gke.sh", [*GKE_TPU, "--name", "Aya_1", "a.gin", "/mnt/aya/b"], "not 'Aya_1'"),
        ("xpk.sh", [], "--name is missing"),
        ("xpk.sh", [*XPK, "a.gin", "gs://b"], "must be a folder on the storage"),
        ("xpk.sh", [*XPK, "--slices", "two", "a.gin", "/b"], "must be a whole number"),
        ("slurm.sbatch", ["--dry-run"], "CONFIG is missing"),
        ("slurm.sbatch", ["--dry-run", "a.gin"], "RUN_DIR is missing"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_done(script, args, message, cloud, call, calls):
    done = call(script, *args, cloud=cloud)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert calls() == []


def examples() -> list[str]:
    """Return the lines of docs/launch.md and of the scripts' own help that call a script."""
    page = (LAUNCH.parent / "docs" / "launch.md").read_text()
    texts = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for script in SCRIPTS:
        texts += re.findall(r"^examples?:\n(.*?)^TEXT$", (LAUNCH / script).read_text(), re.M | re.S)
    lines = "\n".join(texts).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if "launch/" in line and "docker" not in line]


@pytest.mark.parametrize("line", examples())
def test_what_the_docs_and_the_help_show_can_be_typed(line, call):
    words = shlex.split(line)
    at = next(i for i, word in enumerate(words) if word.startswith("launch/"))
    script, args = words[at].removeprefix("launch/"), words[at + 1 :]
    known = dict(word.split("=", 1) for word in words[:at] if re.match("[A-Z_]+=", word))
    verb = [args.pop(0)] if script == "tpu_pod.sh" else []
    done = call(script, *verb, "--dry-run", *args, **known)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_docs_show_every_script():
    page = (LAUNCH.parent / "docs" / "launch.md").read_text()
    assert {name for name in SCRIPTS if f"launch/{name}" in page} == set(SCRIPTS)
