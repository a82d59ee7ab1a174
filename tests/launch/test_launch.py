"""The launch scripts: their help, errors and dry runs, and what they do with stand-ins for the cloud."""

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ("gpu_host.sh", "tpu_pod.sh", "gke.sh", "slurm.sbatch", "supervise.sh", "bucket_run.sh")
TPU = ("--name", "aya", "--zone", "z", "--type", "v5litepod-8")
GKE = ("--name", "aya", "--image", "i", "--claim", "c", "--chips", "8")
GKE_TPU = (*GKE, "--tpu", "tpu-v5-lite-podslice", "--topology", "2x4")

# Stands for gcloud, kubectl and scontrol: notes how it was called; `storage` works on folders, and
# the state of a slice is what the file `state` says.
FAKE = """#!{python}
import json, os, pathlib, shutil, sys
home = pathlib.Path(os.environ["FAKE_HOME"])
args = sys.argv[1:]
with open(home / "calls", "a") as file:
    file.write(json.dumps([pathlib.Path(sys.argv[0]).name, *args]) + "\\n")
if pathlib.Path(sys.argv[0]).name == "kubectl":
    (home / "applied").write_text(sys.stdin.read())
words = [a for a in args if not a.startswith("-")]

def place(path):
    return home / "buckets" / path[5:] if path.startswith("gs://") else pathlib.Path(path)

if words[:2] == ["storage", "ls"]:
    sys.exit(0 if place(words[2]).exists() else 1)
if words[:2] == ["storage", "cp"]:
    place(words[3]).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(place(words[2]), place(words[3]))
if words[:2] == ["storage", "rsync"]:
    import re
    (exclude,) = [a.split("=", 1)[1] for a in args if a.startswith("--exclude=")] or ["$^"]
    source, target = place(words[2]), place(words[3])
    names = lambda top: {{str(f.relative_to(top)) for f in top.rglob("*") if f.is_file()}}
    kept = {{n for n in names(source) if not re.match(exclude, n)}}
    if "--delete-unmatched-destination-objects" in args and target.exists():
        for name in names(target) - kept:
            if not re.match(exclude, name):
                (target / name).unlink()
    for name in kept:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
if words[:3] == ["compute", "tpus", "tpu-vm"]:
    verb, state = words[3], home / "state"
    if verb == "describe":
        print(state.read_text() if state.exists() else "", end="")
    if verb == "create":
        state.write_text("READY")
    if verb == "delete":
        state.unlink()
    if verb == "ssh" and any("aya_jax run" in a for a in args):
        # Each line of `outcomes`: the status of a run, and the state that it leaves.
        outcomes = (home / "outcomes").read_text().split("\\n")
        (home / "outcomes").write_text("\\n".join(outcomes[1:]))
        status, left = outcomes[0].split()
        state.write_text(left)
        sys.exit(int(status))
"""


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """A folder with stand-ins on the PATH of `call`; its file `calls` tells how they were called."""
    home = tmp_path / "cloud"
    (home / "bin").mkdir(parents=True)
    for name in ("gcloud", "kubectl", "scontrol"):
        tool = home / "bin" / name
        tool.write_text(FAKE.format(python=sys.executable))
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return home


def call(
    script: str, *args: str, cloud: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "CUDA", "XLA"))}
    if cloud is not None:
        path = f"{cloud / 'bin'}{os.pathsep}{os.environ['PATH']}"
        inherited |= {"PATH": path, "FAKE_HOME": str(cloud)}
    return subprocess.run(
        ["bash", str(LAUNCH / script), *args],
        env={**inherited, **environment},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(cloud: Path) -> list[list[str]]:
    file = cloud / "calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def verbs(cloud: Path) -> list[str]:
    return [each[4] for each in calls(cloud) if each[1:4] == ["compute", "tpus", "tpu-vm"]]


def lines(done: subprocess.CompletedProcess) -> list[list[str]]:
    """The commands that a dry run printed, as a shell would read them."""
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def fake_python(folder: Path, body: str) -> Path:
    """An interpreter whose `-m aya_jax run` does `body`; it is asked for its GPUs before."""
    path = folder / "my python"
    head = f'#!/bin/bash\n[[ "$1" == -c ]] && exit 0\ncd {shlex.quote(str(folder))}\n'
    path.write_text(head + body)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", [*SCRIPTS, "common.sh"])
def test_bash_can_read_it(name):
    done = subprocess.run(["bash", "-n", str(LAUNCH / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", [*SCRIPTS, "common.sh"])
def test_shellcheck_finds_nothing(name):
    done = subprocess.run(
        [Path(sysconfig.get_path("scripts"), "shellcheck"), "-x", "-s", "bash", f"launch/{name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_every_script_is_known_here():
    found = {path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")}
    assert found == {*SCRIPTS, "common.sh"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option(script):
    done = call(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:")
    text = (LAUNCH / script).read_text()
    assert "set -euo pipefail" in text
    taken = set(re.findall(r"^    (--[a-z-]+)(?: \| -h)?\)", text, re.MULTILINE)) - {"--"}
    assert {"--help", "--dry-run"} <= taken
    assert taken <= set(re.findall(r"--[a-z-]+", done.stdout))


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
        ("supervise.sh", [], "COMMAND is missing"),
        ("supervise.sh", ["--restarts", "x", "--", "true"], "must be a whole number"),
        ("supervise.sh", ["true"], "the command comes after --"),
        ("bucket_run.sh", [], "BUCKET_DIR is missing"),
        ("bucket_run.sh", ["gs://a"], "RUN_DIR is missing"),
        ("bucket_run.sh", ["gs://a", "b"], "COMMAND is missing"),
        ("bucket_run.sh", ["a", "b", "--", "true"], "must begin with gs://"),
        ("tpu_pod.sh", [], "--name is missing"),
        ("tpu_pod.sh", ["--name", "a"], "--zone is missing"),
        ("tpu_pod.sh", ["--name", "a", "--zone", "z"], "--type is missing"),
        ("tpu_pod.sh", [*TPU], "CONFIG is missing"),
        ("tpu_pod.sh", [*TPU, "a.gin"], "RUN_DIR is missing"),
        ("tpu_pod.sh", [*TPU, "/a.gin", "b"], "must be a path in the project"),
        ("tpu_pod.sh", [*TPU, "--type", "v5p", "a.gin", "b"], "--type must be like"),
        ("tpu_pod.sh", [*TPU, "--type", "v5p-128", "a.gin", "b"], "several hosts"),
        ("gke.sh", [], "--name is missing"),
        ("gke.sh", ["--name", "aya"], "--image is missing"),
        ("gke.sh", ["--name", "aya", "--image", "i"], "--claim is missing"),
        ("gke.sh", [*GKE, "a.gin", "/mnt/aya/b"], "--tpu or --gpu is missing"),
        ("gke.sh", [*GKE_TPU, "--gpu", "x", "a.gin", "/mnt/aya/b"], "exclude each other"),
        ("gke.sh", [*GKE, "--tpu", "x", "a.gin", "/mnt/aya/b"], "--topology is missing"),
        ("gke.sh", [*GKE_TPU, "a.gin"], "RUN_DIR is missing"),
        ("gke.sh", [*GKE_TPU, "a.gin", "b"], "must be under /mnt/aya"),
        ("gke.sh", [*GKE_TPU, "--name", "Aya_1", "a.gin", "/mnt/aya/b"], "not 'Aya_1'"),
        ("gke.sh", [*GKE_TPU, "--hosts", "4", "a.gin", "/mnt/aya/b"], "in one process"),
        ("slurm.sbatch", ["--dry-run"], "CONFIG is missing"),
        ("slurm.sbatch", ["--dry-run", "a.gin"], "RUN_DIR is missing"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_done(script, args, message, cloud):
    done = call(script, *args, cloud=cloud)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert calls(cloud) == []


def test_gpu_host_shows_its_command():
    done = call(
        *("gpu_host.sh", "--dry-run", "--gpus", "0,1", "--python", "py 3", "--deterministic"),
        *("my configs/a.gin", "runs/it's here", "--", "--gin_bindings", "SEED = 1"),
        XLA_FLAGS="--mine=1",
    )
    ((*words,),) = lines(done)
    split = words.index("--")
    assert words[0] == "env"
    assert {"JAX_PLATFORMS=cuda", "CUDA_VISIBLE_DEVICES=0,1"} <= set(words[:split])
    (flags,) = [word for word in words if word.startswith("XLA_FLAGS=")]
    assert "--xla_gpu_deterministic_ops=true" in flags
    assert flags.endswith(" --mine=1")
    expected = ["py 3", "-m", "aya_jax", "run", "my configs/a.gin", "--run_dir", "runs/it's here"]
    assert words[split + 1 :] == [*expected, "--gin_bindings", "SEED = 1"]


def test_gpu_host_leaves_the_choice_of_gpus_alone_unless_told():
    done = call("gpu_host.sh", "--dry-run", "a", "b", CUDA_VISIBLE_DEVICES="GPU-uuid")
    assert "CUDA_VISIBLE_DEVICES" not in done.stdout


def test_xla_knows_the_flags_of_gpu_host():
    """XLA aborts on a flag that it does not know; flags of GPUs are known on a CPU as well."""
    (words,) = lines(call("gpu_host.sh", "--dry-run", "--deterministic", "a", "b"))
    (flags,) = [word.split("=", 1)[1] for word in words if word.startswith("XLA_FLAGS=")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-c", "import jax; print(jax.device_count())"]
    known = subprocess.run(program, env={**environment, "XLA_FLAGS": flags}, capture_output=True)
    assert known.returncode == 0, known.stderr
    wrong = {**environment, "XLA_FLAGS": f"{flags} --xla_gpu_no_such_flag=true"}
    assert subprocess.run(program, env=wrong, capture_output=True).returncode != 0


def test_gpu_host_runs_with_arguments_and_environment_intact(tmp_path):
    body = 'printf "%s\\n" "$@" > arguments; echo "$CUDA_VISIBLE_DEVICES" > gpus\n'
    python = fake_python(tmp_path, body)
    done = call("gpu_host.sh", "--gpus", "3", "--python", str(python), "a b", "c'd", "--", "--x=1")
    assert done.returncode == 0, done.stderr
    expected = ["-m", "aya_jax", "run", "a b", "--run_dir", "c'd", "--x=1"]
    assert (tmp_path / "arguments").read_text().splitlines() == expected
    assert (tmp_path / "gpus").read_text() == "3\n"


def test_gpu_host_says_so_where_there_is_no_gpu():
    done = call("gpu_host.sh", "--python", "false", "a.gin", "b")
    assert done.returncode == 2
    assert "JAX finds no GPU" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_supervise_starts_again_what_was_killed(tmp_path):
    count = tmp_path / "count"
    killed_twice = f"echo x >> {count}; (($(wc -l < {count}) > 2)) || kill -9 $$; exit 7"
    done = call("supervise.sh", "--wait", "0", "--", "bash", "-c", killed_twice)
    assert (done.returncode, count.read_text()) == (7, "x\n" * 3)
    assert "restart 2 of 10" in done.stderr


def test_supervise_gives_up_in_the_end(tmp_path):
    count = tmp_path / "count"
    killed = f"echo x >> {count}; kill -9 $$"
    done = call("supervise.sh", "--wait", "0", "--restarts", "2", "--", "bash", "-c", killed)
    assert (done.returncode, count.read_text()) == (137, "x\n" * 3)


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_supervise_leaves_an_end_or_an_error_alone(status, tmp_path):
    count = tmp_path / "count"
    body = f"echo x >> {count}; exit {status}"
    done = call("supervise.sh", "--wait", "0", "--", "bash", "-c", body)
    assert (done.returncode, count.read_text()) == (status, "x\n")


def _started(process: subprocess.Popen, file: Path) -> None:
    for _ in range(500):
        if file.exists() and file.read_text().endswith("\n"):
            return
        assert process.poll() is None
        time.sleep(0.02)
    raise AssertionError(f"{file} was not written")


def test_supervise_passes_on_that_it_is_stopped(tmp_path):
    started = tmp_path / "started"
    body = f"echo $$ >> {started}; exec sleep 60"
    command = ["bash", str(LAUNCH / "supervise.sh"), "--wait", "0", "--", "bash", "-c", body]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _started(process, started)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    (child,) = map(int, started.read_text().split())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_slurm_queues_itself_again_when_its_time_is_up(tmp_path, cloud):
    python = fake_python(tmp_path, "echo $$ >> started; exec sleep 60\n")
    environment = {
        **os.environ,
        "PATH": f"{cloud / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FAKE_HOME": str(cloud),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "41",
    }
    # Slurm runs a copy of the script from another folder.
    script = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")
    process = subprocess.Popen(
        ["bash", str(script), "--python", str(python), "a.gin", "b"],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    _started(process, tmp_path / "started")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert calls(cloud) == [["scontrol", "requeue", "41"]]


def test_slurm_ends_with_the_run_and_refuses_several_nodes(tmp_path, cloud):
    python = fake_python(tmp_path, "exit 3\n")
    args = ("--python", str(python), "a.gin", "b")
    done = call("slurm.sbatch", *args, cloud=cloud, SLURM_JOB_ID="41")
    assert (done.returncode, calls(cloud)) == (3, [])
    done = call("slurm.sbatch", *args, cloud=cloud, SLURM_JOB_NUM_NODES="2")
    assert done.returncode == 2
    assert "--nodes=1" in done.stderr


def test_slurm_shows_its_commands(cloud):
    done = call("slurm.sbatch", "--dry-run", "a b.gin", "c", "--", "--gin_file", "d", cloud=cloud)
    run, requeue = lines(done)
    tail = ["aya_jax", "run", "a b.gin", "--run_dir", "c", "--gin_file", "d"]
    assert run[-len(tail) :] == tail
    assert requeue == ["scontrol", "requeue", "JOB_ID"]
    assert calls(cloud) == []


def test_bucket_run_copies_there_and_back(tmp_path, cloud):
    bucket, folder = cloud / "buckets" / "b" / "my run", tmp_path / "run"
    (bucket / "stages" / "old").mkdir(parents=True)
    (bucket / "run.json").write_text("before")
    (bucket / "stages" / "old" / "x").write_text("1")
    body = "cat run.json; rm -r stages/old; mkdir stages/new; echo 2 > stages/new/y; echo after > run.json; exit 5"
    done = call(
        *("bucket_run.sh", "gs://b/my run", str(folder), "--"),
        *("bash", "-c", f"cd {shlex.quote(str(folder))}; {body}"),
        cloud=cloud,
    )
    assert (done.returncode, done.stdout) == (5, "before")
    held = {str(f.relative_to(bucket)): f.read_text() for f in bucket.rglob("*") if f.is_file()}
    assert held == {"run.json": "after\n", "stages/new/y": "2\n"}


def test_bucket_run_begins_a_new_run_but_not_in_a_bucket_that_it_cannot_read(tmp_path, cloud):
    args = (str(tmp_path / "run"), "--", "bash", "-c", f"echo 1 > {tmp_path}/run/run.json")
    done = call("bucket_run.sh", "gs://b/new", *args, cloud=cloud)
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
    (cloud / "buckets" / "b").mkdir(parents=True)
    done = call("bucket_run.sh", "gs://b/new", *args, cloud=cloud)
    assert done.returncode == 0, done.stderr
    assert (cloud / "buckets" / "b" / "new" / "run.json").read_text() == "1\n"


def test_bucket_run_copies_run_json_as_it_was_before_the_stages(tmp_path, cloud):
    """A stage that ends while its neighbours are copied must not be claimed in the bucket."""
    folder = tmp_path / "run"
    body = "echo one > run.json; mkdir -p stages/one; echo 1 > stages/one/x; while [[ ! -e go ]]; do sleep 0.05; done"
    gcloud = cloud / "bin" / "gcloud"
    # While the first copy of the stages is made, run.json changes; then the bucket goes away.
    hook = f"""#!/bin/bash
{shlex.quote(sys.executable)} {gcloud}.real "$@" || exit
if [[ "$2" == rsync ]]; then echo two > {folder}/run.json; fi
if [[ "$2" == cp ]]; then cp -r {cloud}/buckets {cloud}/first; touch {folder}/go; fi
"""
    gcloud.rename(f"{gcloud}.real")
    gcloud.write_text(hook)
    gcloud.chmod(0o755)
    (cloud / "buckets" / "b").mkdir(parents=True)
    done = call(
        *("bucket_run.sh", "--every", "1", "gs://b/r", str(folder), "--"),
        *("bash", "-c", f"cd {shlex.quote(str(folder))}; {body}"),
        cloud=cloud,
    )
    assert done.returncode == 0, done.stderr
    first = cloud / "first" / "b" / "r"
    assert (first / "run.json").read_text() == "one\n"
    assert (first / "stages" / "one" / "x").read_text() == "1\n"


def test_tpu_pod_shows_its_commands(cloud):
    done = call(
        *("tpu_pod.sh", "--dry-run", *TPU, "--spot", "--delete", "--before", "echo 'a  b' # c"),
        *("configs/my recipe.gin", "gs://b/it's mine", "--", "--gin_bindings", "SEED = 1"),
        cloud=cloud,
    )
    shown = lines(done)
    assert calls(cloud) == []
    tpu = [line[4] for line in shown if line[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]]
    assert tpu == ["describe", "create", "scp", "ssh", "ssh", "ssh", "delete"]
    assert all("--worker=all" in line for line in shown if {"scp", "ssh"} & set(line))
    create = shown[1]
    assert {"--spot", "--version=v2-alpha-tpuv5-lite", "--accelerator-type=v5litepod-8"} <= set(
        create
    )
    before, run = (
        next(word for word in line if word.startswith("--command="))[len("--command=") :]
        for line in shown[-3:-1]
    )
    # As the shell of a host reads it.
    assert shlex.split(before, comments=False)[-3:] == ["bash", "-c", "echo 'a  b' # c"]
    words = shlex.split(run)
    assert words[:4] == ["cd", "aya_jax", "&&", "JAX_PLATFORMS=tpu"]
    assert words[words.index("launch/bucket_run.sh") :][3] == "gs://b/it's mine"
    tail = ["configs/my recipe.gin", "--run_dir", "runs/it's mine", "--gin_bindings", "SEED = 1"]
    assert words[-5:] == tail


@pytest.mark.parametrize(
    ("type_", "version"),
    [
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_tpu_pod_chooses_the_runtime(type_, version):
    done = call("tpu_pod.sh", "--dry-run", *TPU, "--type", type_, "a.gin", "b")
    assert f"--version={version}\n" in done.stdout


def test_tpu_pod_goes_to_all_hosts_of_a_pod_where_that_is_asked_for():
    args = ("--dry-run", *TPU, "--type", "v5p-128", "--allow-multi-host", "a.gin", "b")
    assert call("tpu_pod.sh", *args).stdout.count("--worker=all") == 3


def test_tpu_pod_makes_a_preempted_slice_anew_and_goes_on(cloud):
    (cloud / "outcomes").write_text("255 PREEMPTED\n255 READY\n0 READY")
    done = call("tpu_pod.sh", *TPU, "--wait", "0", "--delete", "configs/a.gin", "b", cloud=cloud)
    assert done.returncode == 0, done.stderr
    attempt = ["scp", "ssh", "ssh"]
    expected = ["describe", "create", *attempt]
    expected += ["describe", "delete", "create", *attempt]  # it was preempted
    expected += ["describe", *attempt, "delete"]  # the connection was lost; then it is done
    assert [verb for verb in verbs(cloud) if verb] == expected
    assert (cloud / "outcomes").read_text() == ""


def test_tpu_pod_stops_at_an_error_of_the_run(cloud):
    (cloud / "outcomes").write_text("1 READY\n0 READY")
    done = call("tpu_pod.sh", *TPU, "--wait", "0", "configs/a.gin", "b", cloud=cloud)
    assert done.returncode == 2
    assert "ended with status 1" in done.stderr
    assert "delete" not in verbs(cloud)


def test_gke_fills_a_whole_jobset(cloud):
    args = [*GKE_TPU, "--spot", "--namespace", "n", "a b.gin", '/mnt/aya/it\'s "é"']
    args += ["--", "--gin_bindings", "x = '$(HOME)'"]
    shown = call("gke.sh", "--dry-run", *args, cloud=cloud)
    assert calls(cloud) == []
    jobset, _ = yaml.safe_load_all(shown.stdout)
    assert shown.stdout.splitlines()[-1].endswith("kubectl --namespace n apply -f -")
    assert "@" not in shown.stdout
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "aya")
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (1, 1, 0)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 8}}
    head = ["python", "-m", "aya_jax", "run", "a b.gin", "--run_dir", '/mnt/aya/it\'s "é"']
    assert container["command"] == [*head, "--gin_bindings", "x = '$$(HOME)'"]
    # An error that the program tells ends the whole; anything else restarts it.
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert jobset["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    done = call("gke.sh", *args, cloud=cloud)
    assert done.returncode == 0, done.stderr
    assert calls(cloud) == [["kubectl", "--namespace", "n", "apply", "-f", "-"]]
    assert yaml.safe_load((cloud / "applied").read_text()) == jobset


def test_gke_asks_for_gpus(cloud):
    args = (*GKE, "--gpu", "nvidia-h100-80gb", "--dry-run", "a.gin", "/mnt/aya/b")
    jobset, _ = yaml.safe_load_all(call("gke.sh", *args, cloud=cloud).stdout)
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert pod["containers"][0]["env"] == [{"name": "JAX_PLATFORMS", "value": "cuda"}]
