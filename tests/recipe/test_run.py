"""The whole recipe as a user runs it: what it leaves, and that it is the same every time."""

import json
import re
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from aya_jax.model import load

pytestmark = pytest.mark.slow

LANGUAGES = {"de", "el", "en", "fr", "ru"}
EVALUATED = (
    *("base", "single_teacher", "arbitrage_sft"),
    *("offline_dpo", "online_dpo_1", "online_dpo_2"),
)
METRICS = ("correct", "right_language", "reward", "unused_reward", "win_rate")


def events(folder):
    """Return the scalars of a folder of TensorBoard events: (step, value) by name."""
    scalars = {}
    for file in sorted(folder.iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (size,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + size])
            for value in event.summary.value:
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
            place += size + 16
    return scalars


def test_every_stage_is_whole(unbroken):
    state = json.loads((unbroken.path / "run.json").read_text())
    assert set(state["stages"]) == set(unbroken.stages)
    assert sorted(p.name for p in (unbroken.path / "stages").iterdir()) == sorted(unbroken.stages)
    # One line a stage, in their order.
    assert re.findall(r"^\[ ?\d+/38\] (\S+)  \d", unbroken.told, re.M) == unbroken.stages


def test_models_can_be_loaded_and_tell_what_made_them(unbroken):
    stages = unbroken.path / "stages"
    for name in unbroken.models:
        model = load(stages / name)
        assert model.is_reward_model == (name in ("reward", "judge"))
        assert model.lineage["stage"] == name
    parts = json.loads((stages / "online_dpo_2" / "lineage.json").read_text())["parents"]
    assert [p["path"] for p in parts] == ["online_dpo_2.western", "online_dpo_2.eastern"]
    start = json.loads((stages / parts[0]["path"] / "lineage.json").read_text())["parents"]
    assert [p["path"] for p in start] == ["online_dpo_1"]


def test_the_report_has_its_contract(unbroken):
    report = unbroken.report()
    assert (report["final"], report["opponent"]) == ("online_dpo_2", "single_teacher")
    assert [stage["name"] for stage in report["stages"]] == unbroken.stages
    assert set(report["models"]) == set(EVALUATED)
    for figures in report["models"].values():
        assert set(METRICS) <= set(figures)
        for metric in METRICS:
            figure = figures[metric]
            assert set(figure["by_language"]) == LANGUAGES
            assert figure["overall"]["n"] == sum(f["n"] for f in figure["by_language"].values())
            for each in (figure["overall"], *figure["by_language"].values()):
                assert set(each) == {"value", "low", "high", "n"}
                assert each["low"] <= each["value"] <= each["high"]


def test_the_report_says_what_the_records_say(unbroken):
    """The figures once more from the records, by hand."""
    report = unbroken.report()
    marked = {name: unbroken.records(f"evaluate.{name}") for name in EVALUATED}
    opponent = [row["unused_reward"] for row in marked["single_teacher"]]
    for name, rows in marked.items():
        assert len(rows) == 5
        figures = report["models"][name]
        for metric in METRICS[:-1]:
            mean = sum(float(row[metric]) for row in rows) / len(rows)
            assert figures[metric]["overall"]["value"] == pytest.approx(mean)
        wins = [
            (row["unused_reward"] > other) + (row["unused_reward"] == other) / 2
            for row, other in zip(rows, opponent, strict=True)
        ]
        assert figures["win_rate"]["overall"]["value"] == pytest.approx(sum(wins) / len(wins))
    routed = unbroken.records("route.reward")
    for code, counts in report["routing"]["reward"].items():
        sources = [row["source"] for row in routed if row["language"] == code]
        assert counts == {name: sources.count(name) for name in set(sources)}


def test_page_and_table(unbroken):
    page = (unbroken.path / "report.html").read_text("utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    table = unbroken.told[unbroken.told.index("95% intervals") :]
    for name in EVALUATED:
        assert f" {name} " in table
        assert name in page
    assert "win rate" in table and "correct" in table
    assert table.rstrip().endswith(f"report: {unbroken.path / 'report.html'}")


def test_the_configuration_that_was_kept_is_the_one_that_ran(copied, aya):
    """Read back, it makes the same run: nothing is repeated."""
    kept = copied.path / "config.gin"
    report = copied.report()
    told = aya.succeed(copied.path, recipe=kept)
    assert "38 of 38 stages were whole already and not repeated" in told
    assert copied.report() == {**report, "recipe": "config"}


def test_training_curves_are_events(unbroken):
    trained = [name for name in unbroken.models if "." in name or name in ("reward", "judge")]
    assert len(trained) == 14
    for name in ("base", *trained):
        curves = events(unbroken.path / "metrics" / name)
        lines = (unbroken.path / "stages" / name / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [step for step, _ in curves["loss"]] == [row["step"] for row in rows]
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
        values = [value for _, value in curves["loss"]]
        assert values == pytest.approx([row["loss"] for row in rows])
        assert all(value > 0 for _, value in curves["tokens_per_second"])


def test_the_same_recipe_elsewhere_gives_the_same_report(unbroken, aya, run_of, tmp_path):
    again = run_of(tmp_path / "again")
    aya.succeed(again.path)
    assert again.report() == unbroken.report()
    assert again.parameters() == unbroken.parameters()
    assert again.files() == unbroken.files()


def test_the_same_command_again_repeats_nothing(copied, aya):
    report, files = copied.report(), copied.files()
    folders = {p.name: p.stat().st_ino for p in (copied.path / "stages").iterdir()}
    told = aya.succeed(copied.path)
    assert "38 of 38 stages were whole already and not repeated" in told
    assert "[" not in told.split("38 of 38")[0]
    assert {p.name: p.stat().st_ino for p in (copied.path / "stages").iterdir()} == folders
    assert (copied.report(), copied.files()) == (report, files)
