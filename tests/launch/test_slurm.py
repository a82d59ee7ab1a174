"""`slurm.sbatch`: its commands, what it queues again, and real processes that find each other by it."""

import shutil
import socket
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARGS = ("a.gin", "b")
# Slurm tells all processes of a task; the run ends with a status of its own.
TOLD_TO_STOP = "trap 'exit {}' TERM; kill -TERM $PPID; sleep 60 >&- 2>&- & wait\n"
# Prints who this process is among how many, and the GPUs that jax leaves it; the platform is the CPU.
JOINED = """
from aya_jax.sharding.processes import leave, start_processes
import sys
import jax
from jax._src.xla_bridge import CUDA_VISIBLE_DEVICES
start_processes()
told = f"{jax.process_index()} {jax.process_count()} {CUDA_VISIBLE_DEVICES.value}\\n"
sys.stdout.write(told)
sys.stdout.flush()
leave(0)
"""


@pytest.fixture
def submitted(call, cloud, tmp_path):
    """`submitted(*args, **environment)`: as Slurm runs it, a copy in another folder."""

    def submitted(*args: str, **environment: str):
        (cloud / "states").write_text("RUNNING")
        copy = shutil.copy(ROOT / "launch" / "slurm.sbatch", tmp_path / "slurm_script")
        known = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "41", **environment}
        return call(str(copy), *args, cloud=cloud, **known)

    return submitted


def test_its_commands(call, calls, cloud, shown):
    done = call("slurm.sbatch", "--dry-run", "a b.gin", "c", "--", "--gin_file", "d", cloud=cloud)
    run, requeue = shown(done)
    assert run[:2] == ["srun", "--ntasks=1"]
    assert "--cpus-per-task=32" in run
    assert run[-6:] == ["launch/gpu_host.sh", "a b.gin", "c", "--", "--gin_file", "d"]
    assert requeue == ["scontrol", "requeue", "JOB_ID"]
    assert calls() == []


def test_several_nodes_are_one_process_each_with_all_their_gpus(call, shown):
    inside = {"SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}
    (run,) = shown(call("slurm.sbatch", "--dry-run", "--no-requeue", *ARGS, **inside))
    assert {"--ntasks=4", "--ntasks-per-node=1", "--cpus-per-task=64"} <= set(run)
    assert {"AYA_PROCESSES=auto", "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7"} <= set(run)


@pytest.mark.parametrize("status", [75, 143])
def test_what_was_preempted_is_queued_again(status, submitted, calls, fake_python):
    """Whether it saved itself or had nothing to save yet."""
    done = submitted("--python", str(fake_python(TOLD_TO_STOP.format(status))), *ARGS)
    assert done.returncode == status
    assert calls()[-1] == ["scontrol", "requeue", "41"]
    assert "queued again" in done.stderr


def test_what_ends_otherwise_is_not_queued_again(submitted, calls, fake_python, cloud):
    done = submitted("--python", str(fake_python("exit 3\n")), *ARGS)
    assert (done.returncode, [each[0] for each in calls()]) == (3, ["srun"])
    stopped = str(fake_python(TOLD_TO_STOP.format(75)))
    assert submitted("--no-requeue", "--python", stopped, *ARGS).returncode == 75
    cancelled = f"printf COMPLETING > {cloud}/states\n{TOLD_TO_STOP.format(75)}"
    assert submitted("--python", str(fake_python(cancelled)), *ARGS).returncode == 75
    assert "scontrol" not in [each[0] for each in calls()]


def test_it_must_be_submitted_from_the_project(submitted, tmp_path):
    done = submitted(*ARGS, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "is not the project" in done.stderr


# jax's coordinator listens at this port and the job's number (modulo 4096).
LOWEST = 65535 - 2**12 + 1


def free_port() -> int:
    for port in range(LOWEST, 65535):
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


@pytest.mark.parametrize(("by_hand", "gpus"), [(False, "0,1"), (True, "all")])
def test_the_processes_of_nodes_find_each_other_and_keep_all_gpus(
    by_hand, gpus, submitted, fake_python
):
    """Told by Slurm, or by hand within Slurm, where jax left alone would take one GPU a process."""
    port = free_port()
    named = f"AYA_COORDINATOR=localhost:{port} AYA_PROCESSES=2 AYA_PROCESS=$SLURM_PROCID"
    told = f"unset JAX_LOCAL_DEVICE_IDS; export {named}" if by_hand else ""
    program = f'export JAX_PLATFORMS=cpu\n{told}\nexec {sys.executable} -c "$JOINED"\n'
    done = submitted(
        *("--python", str(fake_python(program)), *ARGS),
        SLURM_JOB_ID=str(port - LOWEST),
        SLURM_JOB_NUM_NODES="2",
        SLURM_GPUS_ON_NODE="2",
        JOINED=JOINED,
        PYTHONPATH=f"{ROOT}:{ROOT / 'kernels'}",
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"0 2 {gpus}", f"1 2 {gpus}"]
