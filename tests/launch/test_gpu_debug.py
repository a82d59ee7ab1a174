"""`gpu_debug.sh`: its command, and that the settings do what they are for."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A step with a donated argument, of which the second call makes a NaN.
NAN = """
import jax
step = jax.jit(lambda x: jax.numpy.log(x), donate_argnums=0)
x = jax.numpy.ones(3)
step(x)
print("kept" if not x.is_deleted() else "donated", flush=True)
step(jax.numpy.full(3, -1.0))
"""


def environment(words: list[str]) -> dict[str, str]:
    given = words[1 : next(i for i, word in enumerate(words[1:], 1) if "=" not in word)]
    return dict(word.split("=", 1) for word in given)


def run(program: list[str], **settings: str) -> subprocess.CompletedProcess:
    known = {**os.environ, **settings, "JAX_PLATFORMS": "cpu"}
    known["PYTHONPATH"] = f"{ROOT}:{ROOT / 'kernels'}"
    return subprocess.run(
        [sys.executable, *program], env=known, capture_output=True, text=True, timeout=120
    )


def test_its_command(call, shown):
    args = ("configs/recipes/expanse_8b.gin", "runs/d", "--", "--gin_bindings", "BATCH = 8")
    (words,) = shown(call("gpu_debug.sh", "--dry-run", "--gpu", "2", "--python", "py 3", *args))
    known = environment(words)
    assert (known["CUDA_VISIBLE_DEVICES"], known["JAX_DEBUG_NANS"]) == ("2", "True")
    assert "--xla_gpu_deterministic_ops=true" in known["XLA_FLAGS"]
    program = words[words.index("py 3") + 1 :]
    assert program[1:6] == ["runs/d.memory.prof", "run", args[0], "--run_dir", "runs/d"]
    # The sizes that the recipe names are small; what is asked for comes last and wins.
    bindings = program[7::2]
    assert {"MAX_LENGTH = 256", "BATCH = 4"} <= set(bindings)
    assert bindings[-1] == "BATCH = 8"


def test_a_recipe_that_names_no_sizes_keeps_them(call, shown):
    done = call("gpu_debug.sh", "--dry-run", "configs/recipes/tiny.gin", "runs/d")
    assert "--gin_bindings" not in done.stdout


def test_its_settings_find_a_nan_and_donate_nothing(call, shown):
    (words,) = shown(call("gpu_debug.sh", "--dry-run", "configs/recipes/tiny.gin", "runs/d"))
    known = environment(words)
    found = run(["-c", NAN], JAX_DEBUG_NANS=known["JAX_DEBUG_NANS"], XLA_FLAGS=known["XLA_FLAGS"])
    assert found.returncode != 0
    assert "FloatingPointError: invalid value (nan) encountered in log" in found.stderr
    assert found.stdout.startswith("kept\n")
    without = run(["-c", NAN])
    assert (without.returncode, without.stdout) == (0, "donated\n")


def test_the_profile_is_of_the_memory_in_use(tmp_path):
    """In pprof's format, from while `aya` was at work; its status is the command's."""
    profile = tmp_path / "memory.prof"
    big = "import jax; import aya_jax.cli; held = jax.numpy.ones((1 << 20,)); "
    wait = "import pathlib, time; "
    done = run(
        [
            "-c",
            f"{big}{wait}import sys, runpy\n"
            "def main(arguments):\n"
            "    assert arguments == ['run', 'x']\n"
            f"    while not pathlib.Path({str(profile)!r}).exists(): time.sleep(0.05)\n"
            "    return 3\n"
            "aya_jax.cli.main = main\n"
            f"sys.argv = ['memory_profile.py', {str(profile)!r}, 'run', 'x']\n"
            f"runpy.run_path({str(ROOT / 'launch' / 'memory_profile.py')!r}, run_name='__main__')\n",
        ]
    )
    assert done.returncode == 3, done.stderr
    held = gzip.decompress(profile.read_bytes())
    assert b"bytes" in held and b"buffer" in held
