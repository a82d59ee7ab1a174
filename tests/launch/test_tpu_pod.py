"""`tpu_pod.sh`: the commands that it makes, what they do on a host, and how it goes on after a preemption."""

import shlex
import subprocess
from pathlib import Path

import pytest

AYA = ("--name", "aya", "--zone", "z")
ONE = (*AYA, "--type", "v5litepod-8")
POD = (*AYA, "--type", "v5p-128", "--slices", "2", "--nfs", "10.0.0.2:/share")

# What a host has: `uv` makes a Python whose `aya run` does `body`; nothing is installed or mounted.
PYTHON3 = """#!/bin/bash
if [[ "$*" == *' uv venv '* ]]; then
  mkdir -p .venv/bin
  cp "$FAKE_HOME/python" .venv/bin/python
fi
"""
NOTE = '#!/bin/bash\necho "${0##*/} $*" >> "$FAKE_HOME/noted"\n'


@pytest.fixture
def host(cloud: Path) -> Path:
    """The folder that stands for the home of a host; what its Python is told is in `cloud/runs`."""
    folder = cloud / "host"
    (folder / "bin").mkdir(parents=True)
    files = {
        folder / "bin" / "python3": PYTHON3,
        folder / "bin" / "sudo": NOTE,
        folder / "bin" / "mountpoint": NOTE + "exit 1\n",
        cloud
        / "python": '#!/bin/bash\necho "$JAX_PLATFORMS $AYA_PROCESSES $*" >> "$FAKE_HOME/runs"\n'
        "echo the run speaks\n. $FAKE_HOME/body\n",
    }
    for file, text in files.items():
        file.write_text(text)
        file.chmod(0o755)
    (cloud / "body").write_text("exit 0\n")
    (cloud / "states").write_text("")
    (cloud / "outcomes").write_text("run")
    return folder


@pytest.fixture
def verbs(calls):
    """`verbs()`: what was asked of the queued resource so far, without looks at its state."""

    def verbs() -> list[str]:
        asked = [
            each[4] for each in calls() if each[1:4] == ["compute", "tpus", "queued-resources"]
        ]
        return [verb for verb in asked if verb != "describe"]

    return verbs


def remote(line: list[str]) -> str:
    """Return the command of a line of a dry run as the shell of a host gets it."""
    return next(word for word in line if word.startswith("--command="))[len("--command=") :]


def test_its_commands(call, calls, shown, cloud):
    done = call(
        *(
            "tpu_pod.sh",
            "run",
            "--dry-run",
            *ONE,
            "--spot",
            "--delete",
            "--before",
            "echo 'a  b' # c",
        ),
        *("configs/my recipe.gin", "gs://b/it's mine", "--", "--gin_bindings", "SEED = 1"),
        cloud=cloud,
    )
    lines = shown(done)
    assert calls() == []
    tpu = [line for line in lines if line[:4] == ["gcloud", "compute", "tpus", "queued-resources"]]
    assert [line[4] for line in tpu] == ["describe", "create", "scp", "ssh", "ssh", "delete"]
    everywhere = [line for line in tpu if {"scp", "ssh"} & set(line)]
    assert all({"--node=all", "--worker=all"} <= set(line) for line in everywhere)
    assert {
        *("--spot", "--runtime-version=v2-alpha-tpuv5-lite", "--accelerator-type=v5litepod-8"),
        "--node-id=aya",
    } <= set(tpu[1])
    assert "--force" in tpu[-1]
    # As the shell of a host reads it.
    install = shlex.split(remote(tpu[3]))
    assert install[install.index("-c", install.index("bash")) + 1] == "echo 'a  b' # c;"
    words = shlex.split(remote(tpu[4]))
    assert words[:6] == ["cd", "aya_jax", "&&", "launch/detached.sh", "../aya_run", "--"]
    assert "AYA_PROCESSES=auto" not in words
    assert words[words.index("launch/bucket_run.sh") :][3] == "gs://b/it's mine"
    tail = ["configs/my recipe.gin", "--run_dir", "runs/it's mine", "--gin_bindings", "SEED = 1"]
    assert words[-5:] == tail


def test_several_slices_are_asked_for_together_and_share_a_file_system(call, shown):
    done = call("tpu_pod.sh", "run", "--dry-run", *POD, "a.gin", "/mnt/aya/r")
    create, _, _, install, run = shown(done)[1:]
    assert {"--node-count=2", "--node-prefix=aya"} <= set(create)
    assert "mount -t nfs 10.0.0.2:/share /mnt/aya" in remote(install)
    words = shlex.split(remote(run))
    assert {"JAX_PLATFORMS=tpu", "AYA_PROCESSES=auto"} <= set(words)
    # A process that was lost is started again only when all have ended.
    supervise = words.index("launch/supervise.sh")
    assert words[supervise : supervise + 4] == ["launch/supervise.sh", "--wait", "60", "--"]


@pytest.mark.parametrize(
    ("type_", "several"), [("v5litepod-8", False), ("v5p-8", False), ("v6e-16", True)]
)
def test_processes_join_where_there_are_several_hosts(type_, several, call):
    done = call("tpu_pod.sh", "run", "--dry-run", *AYA, "--type", type_, "a.gin", "/mnt/aya/b")
    assert ("AYA_PROCESSES=auto" in done.stdout) == several


@pytest.mark.parametrize(
    ("type_", "version"),
    [
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_it_chooses_the_runtime(type_, version, call):
    done = call("tpu_pod.sh", "create", "--dry-run", *AYA, "--type", type_)
    assert f"--runtime-version={version} " in done.stdout


@pytest.mark.parametrize("verb", ["install", "logs", "stop", "delete"])
def test_steps_can_be_taken_alone(verb, call, shown, cloud):
    lines = shown(call("tpu_pod.sh", verb, "--dry-run", *AYA, cloud=cloud))
    there = {"install": ["scp", "ssh"], "logs": ["ssh"], "stop": ["ssh"], "delete": ["delete"]}
    assert [line[4] for line in lines if line[0] == "gcloud"] == there[verb]


def test_a_run_from_nothing_to_its_end(cloud, host, call, verbs):
    args = ("--wait", "0", "--delete", "configs/a.gin", "/mnt/aya/r")
    done = call("tpu_pod.sh", "run", *POD, *args, cloud=cloud)
    assert done.returncode == 0, done.stderr
    assert verbs() == ["create", "scp", "ssh", "ssh", "delete"]
    assert "WAITING_FOR_RESOURCES; waiting" in done.stderr
    assert "the run speaks" in done.stdout
    ran = "tpu auto -m aya_jax run configs/a.gin --run_dir /mnt/aya/r\n"
    assert (cloud / "runs").read_text() == ran
    assert "sudo mount -t nfs 10.0.0.2:/share /mnt/aya" in (cloud / "noted").read_text()
    assert (host / "aya_jax" / "launch" / "common.sh").exists()
    done = call("tpu_pod.sh", "logs", *AYA, cloud=cloud)
    assert done.stdout.endswith(": the run speaks\n")


def test_slices_that_were_preempted_are_asked_for_anew_and_the_run_goes_on(
    cloud, host, call, verbs
):
    (cloud / "states").write_text("ACTIVE")
    (cloud / "outcomes").write_text("255 ACTIVE\n255 SUSPENDED\n75 FAILED\nrun")
    args = ("--wait", "0", "configs/a.gin", "/mnt/aya/r")
    done = call("tpu_pod.sh", "run", *ONE, *args, cloud=cloud)
    assert done.returncode == 0, done.stderr
    again, start = ["delete", "create"], ["scp", "ssh", "ssh"]
    # The connection was lost; the slices were preempted; they failed after the run had saved itself.
    assert verbs() == [*start, *start, *again, *start, *again, *start]
    assert (cloud / "outcomes").read_text() == ""


def test_a_run_that_is_at_work_is_followed_and_not_installed_over(cloud, host, call, begin):
    (cloud / "body").write_text('while [[ ! -e "$FAKE_HOME/go" ]]; do sleep 0.05; done; exit 3\n')
    (cloud / "states").write_text("ACTIVE")
    (cloud / "outcomes").write_text("run\nrun")
    args = ("run", *ONE, "--wait", "0", "configs/a.gin", "/r")
    first, second = cloud / "first", cloud / "second"
    followers = [begin("tpu_pod.sh", *args, until=cloud / "runs", output=first, cloud=cloud)]
    marked = host / "aya_jax" / "constraints.txt"
    marked.write_text("as it is\n")
    followers.append(begin("tpu_pod.sh", *args, until=second, output=second, cloud=cloud))
    (cloud / "go").touch()
    assert [each.wait(timeout=20) for each in followers] == [2, 2]
    for said in (first, second):
        assert "the run speaks" in said.read_text()
        assert "ended with status 3 on slices that are well" in said.read_text()
    assert marked.read_text() == "as it is\n"
    assert len((cloud / "runs").read_text().splitlines()) == 1


def test_a_run_that_is_stopped_is_not_started_again(cloud, host, call, begin, verbs):
    (cloud / "body").write_text("trap 'echo saved; exit 75' TERM; sleep 60 & wait\n")
    (cloud / "states").write_text("ACTIVE")
    follower = begin(
        *("tpu_pod.sh", "run", *ONE, "--wait", "0", "configs/a.gin", "/r"),
        until=cloud / "runs",
        cloud=cloud,
    )
    assert call("tpu_pod.sh", "stop", *AYA, cloud=cloud).returncode == 0
    assert follower.wait(timeout=20) == 130
    assert "saved" in (host / "aya_run" / "log").read_text()
    assert "delete" not in verbs()


def test_an_error_of_the_run_ends_it(cloud, host, call, verbs):
    (cloud / "body").write_text("exit 1\n")
    (cloud / "states").write_text("ACTIVE")
    done = call("tpu_pod.sh", "run", *ONE, "--wait", "0", "configs/a.gin", "b", cloud=cloud)
    assert done.returncode == 2
    assert "ended with status 1" in done.stderr
    assert verbs() == ["scp", "ssh", "ssh"]


def test_the_host_has_what_git_tracks(cloud, host, call):
    (cloud / "states").write_text("ACTIVE")
    assert call("tpu_pod.sh", "install", *AYA, cloud=cloud).returncode == 0
    root = Path(__file__).resolve().parents[2]
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    there = {str(path.relative_to(host / "aya_jax")) for path in (host / "aya_jax").rglob("*")}
    assert set(listed.stdout.splitlines()) <= there | {""}
