"""`gpu_host.sh`: the command that it makes, the flags that it gives XLA, and GPUs that are not there."""

import os
import subprocess
import sys


def test_its_command(call, shown):
    done = call(
        *("gpu_host.sh", "--dry-run", "--gpus", "0,1", "--python", "py 3", "--deterministic"),
        *("my configs/a.gin", "runs/it's here", "--", "--gin_bindings", "SEED = 1"),
        XLA_FLAGS="--mine=1",
    )
    ((*words,),) = shown(done)
    split = words.index("--")
    assert words[0] == "env"
    assert {"JAX_PLATFORMS=cuda", "CUDA_VISIBLE_DEVICES=0,1"} <= set(words[:split])
    (flags,) = [word for word in words if word.startswith("XLA_FLAGS=")]
    assert "--xla_gpu_deterministic_ops=true" in flags
    assert flags.endswith(" --mine=1")
    expected = ["py 3", "-m", "aya_jax", "run", "my configs/a.gin", "--run_dir", "runs/it's here"]
    assert words[split + 1 :] == [*expected, "--gin_bindings", "SEED = 1"]


def test_several_hosts_start_again_only_when_all_have_ended(call, shown):
    ((*words,),) = shown(call("gpu_host.sh", "--dry-run", "a", "b", AYA_PROCESSES="2"))
    assert words[words.index("--") - 2 : words.index("--")] == ["--wait", "60"]
    for number in ({}, {"AYA_PROCESSES": "1"}):
        assert "--wait" not in call("gpu_host.sh", "--dry-run", "a", "b", **number).stdout


def test_the_choice_of_gpus_is_left_alone_unless_told(call):
    done = call("gpu_host.sh", "--dry-run", "a", "b", CUDA_VISIBLE_DEVICES="GPU-uuid")
    assert "CUDA_VISIBLE_DEVICES" not in done.stdout


def test_xla_knows_its_flags(call, shown):
    """XLA aborts on a flag that it does not know; flags of GPUs are known on a CPU as well."""
    (words,) = shown(call("gpu_host.sh", "--dry-run", "--deterministic", "a", "b"))
    (flags,) = [word.split("=", 1)[1] for word in words if word.startswith("XLA_FLAGS=")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-c", "import jax; print(jax.device_count())"]
    known = subprocess.run(program, env={**environment, "XLA_FLAGS": flags}, capture_output=True)
    assert known.returncode == 0, known.stderr
    wrong = {**environment, "XLA_FLAGS": f"{flags} --xla_gpu_no_such_flag=true"}
    assert subprocess.run(program, env=wrong, capture_output=True).returncode != 0


def test_arguments_and_environment_stay_intact(tmp_path, call, fake_python):
    python = fake_python('printf "%s\\n" "$@" > arguments; echo "$CUDA_VISIBLE_DEVICES" > gpus\n')
    done = call("gpu_host.sh", "--gpus", "3", "--python", str(python), "a b", "c'd", "--", "--x=1")
    assert done.returncode == 0, done.stderr
    expected = ["-m", "aya_jax", "run", "a b", "--run_dir", "c'd", "--x=1"]
    assert (tmp_path / "arguments").read_text().splitlines() == expected
    assert (tmp_path / "gpus").read_text() == "3\n"


def test_it_says_so_where_there_is_no_gpu(call):
    done = call("gpu_host.sh", "--python", "false", "a.gin", "b")
    assert done.returncode == 2
    assert "JAX finds no GPU" in done.stderr
    assert len(done.stderr.splitlines()) == 1
