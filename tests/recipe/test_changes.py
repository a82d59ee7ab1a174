"""What a change of the configuration, of a file or of nothing makes a finished run do again."""

import re
import signal
import subprocess

import numpy as np
import pytest

from aya_jax.checkpoints.model_directory import load_params
from aya_jax.data.records import write_records

pytestmark = pytest.mark.slow

EVALUATIONS = [
    f"evaluate.{name}"
    for name in (
        *("base", "single_teacher", "arbitrage_sft"),
        *("offline_dpo", "online_dpo_1", "online_dpo_2"),
    )
]


def ran(told):
    """Return the stages that have a line of their own, in order."""
    return re.findall(r"^\[ ?\d+/\d+\] (\S+)  \d", told, re.M)


def folders(run):
    return {place.name: place.stat().st_ino for place in (run.path / "stages").iterdir()}


def again(run, aya, expected, *bindings):
    """Run with other settings; assert that just the expected stages are made anew, and why."""
    before = folders(run)
    told = aya.succeed(run.path, *bindings)
    assert ran(told) == expected
    assert re.findall(r"^(\S+) runs again: ", told, re.M) == expected
    kept = {name: number for name, number in before.items() if name not in expected}
    assert {name: folders(run)[name] for name in kept} == kept
    assert f"{len(kept)} of {len(before)} stages were whole already" in told
    return told


def test_beta_of_one_iteration(copied, aya):
    report = copied.report()
    told = again(
        copied,
        aya,
        [*(f"online_dpo_2{part}" for part in (".western", ".eastern", "")), EVALUATIONS[-1]],
        "online_dpo/iteration_2/dpo_objective.beta = 0.4",
    )
    why = "online_dpo/iteration_2/{0}/dpo_objective.beta 0.1 -> 0.4"
    for part in ("western", "eastern"):
        assert f"online_dpo_2.{part} runs again: {why.format(part)}\n" in told
    changed = "its input online_dpo_2.western, online_dpo_2.eastern changed"
    assert f"online_dpo_2 runs again: {changed}\n" in told
    models = copied.report()["models"]
    assert {name for name in models if models[name] != report["models"][name]} <= {"online_dpo_2"}


def test_weights_of_one_merge(copied, aya):
    told = again(
        copied,
        aya,
        ["online_dpo_2", EVALUATIONS[-1]],
        "online_dpo/iteration_2/merge.weights = [0.25, 0.75]",
    )
    assert (
        "online_dpo_2 runs again: online_dpo/iteration_2/merge.weights None -> [0.25, 0.75]" in told
    )
    stages = copied.path / "stages"
    west, east, merged = (
        load_params(stages / name)["embedding"]
        for name in ("online_dpo_2.western", "online_dpo_2.eastern", "online_dpo_2")
    )
    expected = 0.25 * np.asarray(west, np.float64) + 0.75 * np.asarray(east, np.float64)
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-8)


def test_evaluation_prompts(copied, aya, tmp_path):
    asked = [
        {"id": f"mine-{i}", "language": code, "prompt": prompt}
        for i, (code, prompt) in enumerate([("de", "Hallo"), ("fr", "Bonjour"), ("ru", "Привет")])
    ]
    file = write_records(tmp_path / "mine.jsonl", asked)
    source = f"evaluation_prompts/source.records.source = '{file}'"
    expected = ["evaluation_prompts", "check", *EVALUATIONS]
    told = again(copied, aya, expected, source)
    assert f"evaluation_prompts/source.records.source 'atlas' -> '{file}'" in told
    models = copied.report()["models"]
    # Without reference answers there is nothing to check.
    for figures in models.values():
        assert set(figures) == {"reward", "right_language", "unused_reward", "win_rate"}
    assert models["online_dpo_2"]["win_rate"]["overall"]["n"] == 3
    write_records(file, asked[:2])
    told = again(copied, aya, expected, source)
    assert "evaluation_prompts runs again: evaluation_prompts/source (content) " in told
    assert copied.report()["models"]["online_dpo_2"]["win_rate"]["overall"]["n"] == 2


def test_two_runs_at_once(aya, tmp_path):
    """The second stops at once, and the first is not disturbed."""
    first = aya.start(tmp_path / "run", stdout=subprocess.PIPE)
    try:
        assert b"tokenizer" in first.stdout.readline()
        line = aya.refused(tmp_path / "run")
        assert "another run is at work in this directory" in line and str(tmp_path / "run") in line
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    reason="this session, and so its processes, does not hear of interrupts",
)
def test_an_interrupt(aya, tmp_path):
    run = aya.start(tmp_path / "run", stdout=subprocess.PIPE)
    try:
        assert b"tokenizer" in run.stdout.readline()
        run.send_signal(signal.SIGINT)
        told, _ = run.communicate()
    finally:
        run.kill()
    assert run.returncode == 130
    assert told.decode().splitlines()[-1] == "aya: stopped; the same command goes on from here"
    assert (tmp_path / "run" / "stages" / "tokenizer").is_dir()
