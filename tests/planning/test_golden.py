"""The plan of the 8B recipe on 64 chips, compiled for TPUs that are only described, against the one that is kept.

`make tpu-compile` installs the compiler and runs this; without it the test is skipped.
"""

import importlib.util
import json
from pathlib import Path

import pytest


def load_golden():
    spec = importlib.util.spec_from_file_location("golden", Path(__file__).parent / "golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.tpu_compile
def test_the_plan_of_the_8b_recipe_is_the_one_that_is_kept(monkeypatch):
    pytest.importorskip("libtpu", reason="the TPU's compiler is not here; see `make tpu-compile`")
    golden = load_golden()
    kept = json.loads(golden.PLACE.read_text())
    monkeypatch.chdir(Path(__file__).parents[2])
    made = golden.make()
    assert made["stages"] == kept["stages"]
    assert made["programs"].keys() == kept["programs"].keys()
    same = made["versions"] == kept["versions"]
    for name, program in kept["programs"].items():
        found = made["programs"][name]
        for key in golden.EXACT:
            assert found[key] == program[key], f"{name}: {key}"
        assert found["argument_bytes"] == pytest.approx(program["argument_bytes"], rel=0.001)
        # Another release of the compiler may arrange memory and exchanges otherwise, but not by much.
        assert found["peak_bytes"] == pytest.approx(
            program["peak_bytes"], rel=0.01 if same else 0.15
        )
        if same:
            assert found["collectives"].keys() == program["collectives"].keys(), name
        sent, before = (
            sum(sent for _, sent in each["collectives"].values()) for each in (found, program)
        )
        assert sent == pytest.approx(before, rel=0.01 if same else 0.3), name
        assert found["step_seconds_bound"] == pytest.approx(
            program["step_seconds_bound"], rel=0.01 if same else 0.3
        )
