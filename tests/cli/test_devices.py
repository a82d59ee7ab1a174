"""Several devices on one host."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_batch_that_the_mesh_cannot_split(shelf, tmp_path):
    # First, since XLA reads no further than a flag without dashes, which conftest has.
    flags = f"--xla_force_host_platform_device_count=2 {os.environ['XLA_FLAGS']}"
    arguments = ["--model", shelf.model, "--data", shelf.sft, "--out", tmp_path / "out"]
    for binding in ("train.batch_size = 3", "lengths.max_length = 64"):
        arguments += ["--gin_bindings", binding]
    ended = subprocess.run(
        [sys.executable, "-m", "aya_jax", "sft", *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    told = ended.stderr.splitlines()
    assert len(told) == 1 and "train.batch_size 3 does not divide over the mesh" in told[0]
    assert list(tmp_path.iterdir()) == []
