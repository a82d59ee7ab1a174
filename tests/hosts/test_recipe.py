"""`aya run` in several processes gives the report of one, and tells what is wrong once."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from aya_jax.checkpoints.model_directory import load_params

SHORT = (
    "device_mesh.fsdp = 2",
    "expanse.iterations = 1",
    "expanse.baselines = ()",
    "expanse.opponent = 'base'",
    "expanse.teachers = {'west': ['en', 'de', 'fr']}",
    "train.steps = 2",
)


def command(run_dir, *bindings):
    given = [word for binding in bindings for word in ("--gin_bindings", binding)]
    return ["-m", "aya_jax", "run", "tests/recipe/micro.gin", "--run_dir", run_dir, *given]


def report(run_dir):
    made = json.loads(Path(run_dir, "report.json").read_text("utf-8"))
    for stage in made["stages"]:
        assert stage.pop("seconds") >= 0
    return made


@pytest.mark.slow
def test_a_recipe_in_two_processes_is_that_in_one(hosts, tmp_path):
    runs = [tmp_path / "one", tmp_path / "two"]
    for count, run_dir in enumerate(runs, start=1):
        ended = hosts.run(command(run_dir, *SHORT), count=count, devices=2)
        assert [each.status for each in ended] == [0] * count, [e.err[-3000:] for e in ended]
        assert f"report: {run_dir}/report.html" in ended[0].out
        assert all("report" not in each.out for each in ended[1:])
    one, two = map(report, runs)
    # Sums over devices are added up in another order where a process has more of them.
    assert one.keys() == two.keys()
    assert one["models"] == two["models"]
    for stage in ("reward", "online_dpo_1"):
        params = [jax.tree.leaves(load_params(each / "stages" / stage)) for each in runs]
        for a, b in zip(*params, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_mistake_is_told_once_and_ends_both(hosts, tmp_path):
    ended = hosts.run(command(tmp_path / "run", "train.stps = 2"), count=2, devices=2)
    assert [each.status for each in ended] == [1, 1], ended
    told = [line for each in ended for line in each.err.splitlines() if line.startswith("aya run:")]
    assert len(told) == 1 and "stps" in told[0]
