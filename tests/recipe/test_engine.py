"""How a run behaves, with stages that only write files."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time

import gin
import pytest

import aya_jax.data.atlas
import aya_jax.training.loop  # noqa: F401  both for their names in gin
from aya_jax.errors import AyaError
from aya_jax.progress import Terminal
from aya_jax.recipe import run_directory
from aya_jax.recipe import stages as engine
from aya_jax.recipe.run_directory import RunDirectory
from aya_jax.recipe.settings import check_scopes, parse_gin
from aya_jax.recipe.stages import Stage, execute


@gin.configurable(module="toys")
def toy_value(*, value: int = 1, rate: float = 0.5) -> int:
    return value


@pytest.fixture(autouse=True)
def _plain_gin():
    gin.clear_config()
    yield
    gin.clear_config()


class Toys:
    """Four stages: b takes a, c takes b, d stands alone. `ran` lists what was executed."""

    def __init__(self, path):
        self.path = path
        self.ran = []
        self.broken = None
        self.extra = {}

    def run(self, context):
        self.ran.append(context.name)
        before = [(place / "out").read_text() for place in context.inputs.values()]
        # Each attempt leaves a trace, as a training leaves its checkpoints.
        with (context.directory / "attempts").open("a") as file:
            file.write("x")
        if context.name == self.broken:
            raise AyaError("the toy broke")
        (context.directory / "out").write_text(f"{context.name}={toy_value()}({''.join(before)})")
        return {"value": toy_value()}

    def execute(self):
        wiring = {"a": (), "b": ("a",), "c": ("b",), "d": ()}
        stages = [
            Stage(
                name,
                self.run,
                inputs,
                scope=f"group/{name}",
                uses=(toy_value,),
                extra=self.extra.get(name, {}),
            )
            for name, inputs in wiring.items()
        ]
        self.ran = []
        told = io.StringIO()
        with RunDirectory(self.path) as run:
            execute(stages, run, Terminal(told))
        return told.getvalue()

    def out(self, name):
        return (self.path / "stages" / name / "out").read_text()


@pytest.fixture
def toys(tmp_path):
    return Toys(tmp_path / "run")


def bind(*bindings):
    gin.clear_config()
    parse_gin([], list(bindings))


def test_what_is_whole_is_not_repeated(toys):
    told = toys.execute()
    assert toys.ran == ["a", "b", "c", "d"]
    assert toys.out("c") == "c=1(b=1(a=1()))"
    assert [line.split()[:2] for line in told.splitlines()] == [
        ["[1/4]", "a"],
        ["[2/4]", "b"],
        ["[3/4]", "c"],
        ["[4/4]", "d"],
    ]
    told = toys.execute()
    assert toys.ran == []
    assert told == "4 of 4 stages were whole already and not repeated\n"


def test_a_setting_reruns_what_depends_on_it_and_says_which(toys):
    toys.execute()
    bind("group/b/toys.toy_value.value = 2")
    told = toys.execute()
    assert toys.ran == ["b", "c"]
    assert toys.out("c") == "c=1(b=2(a=1()))"
    assert "b runs again: group/b/toy_value.value 1 -> 2\n" in told
    assert "c runs again: its input b changed\n" in told
    assert "2 of 4 stages were whole already" in told
    # Back again: what was made in between is not mistaken for what these settings make.
    bind()
    toys.execute()
    assert toys.ran == ["b", "c"]
    assert toys.out("c") == "c=1(b=1(a=1()))"


def test_what_run_json_writes_otherwise_is_no_change(toys):
    toys.extra["b"] = {"languages": ("de", "en")}
    toys.execute()
    bind("group/b/toys.toy_value.value = 2")
    assert "b runs again: group/b/toy_value.value 1 -> 2\n" in toys.execute()


def test_a_setting_of_a_group_reaches_its_members_unless_they_have_their_own(toys):
    bind("group/d/toys.toy_value.value = 7")
    toys.execute()
    bind("group/toys.toy_value.value = 3", "group/d/toys.toy_value.value = 7")
    toys.execute()
    assert toys.ran == ["a", "b", "c"]
    assert (toys.out("c"), toys.out("d")) == ("c=3(b=3(a=3()))", "d=7()")


def test_a_file_of_the_user_or_the_code_changes(toys, monkeypatch):
    toys.execute()
    toys.extra = {"d": {"fingerprint of prompts": "1234"}}
    told = toys.execute()
    assert toys.ran == ["d"]
    assert "fingerprint of prompts None -> '1234'" in told
    monkeypatch.setattr(engine, "code_version", lambda: "other")
    told = toys.execute()
    assert toys.ran == ["a", "b", "c", "d"]
    assert "d runs again: the code changed\n" in told


def test_a_failing_stage_leaves_what_was_made(toys):
    toys.broken = "b"
    with pytest.raises(AyaError, match="the toy broke"):
        toys.execute()
    assert toys.ran == ["a", "b"]
    state = json.loads((toys.path / "run.json").read_text())
    assert list(state["stages"]) == ["a"]
    assert sorted(p.name for p in (toys.path / "stages").iterdir()) == ["a", "b.partial"]
    toys.broken = None
    toys.execute()
    assert toys.ran == ["b", "c", "d"]
    # It went on in the folder of the attempt before.
    assert (toys.path / "stages" / "b" / "attempts").read_text() == "xx"


def test_what_a_kill_left_half_written_is_cleared_away(toys):
    toys.broken = "b"
    with pytest.raises(AyaError):
        toys.execute()
    partial = toys.path / "stages" / "b.partial"
    checkpoint = partial / "checkpoints" / ".step_00000002.4711.tmp"
    checkpoint.mkdir(parents=True)
    for file in (checkpoint / "arrays", partial / ".records.jsonl.4711.tmp"):
        file.write_text("half")
    (toys.path / "stages" / "b.old").mkdir()
    toys.broken = None
    toys.execute()
    assert sorted(p.name for p in (toys.path / "stages").iterdir()) == ["a", "b", "c", "d"]
    left = [p.name for p in (toys.path / "stages" / "b").rglob("*") if p.is_file()]
    assert sorted(left) == ["attempts", "fingerprint", "out"]


def test_an_attempt_with_other_settings_is_not_gone_on_from(toys):
    toys.broken = "b"
    with pytest.raises(AyaError):
        toys.execute()
    curves = toys.path / "metrics" / "b"
    curves.mkdir(parents=True)
    (curves / "events").write_text("of the old settings")
    toys.broken = None
    bind("group/b/toys.toy_value.rate = 0.25")
    toys.execute()
    assert (toys.path / "stages" / "b" / "attempts").read_text() == "x"
    assert not (curves / "events").exists()


def test_a_stage_killed_before_its_rename_is_not_whole(toys):
    toys.execute()
    place = toys.path / "stages" / "b"
    place.rename(place.with_name("b.partial"))
    toys.execute()
    # c was made of the same b, so it stands.
    assert toys.ran == ["b"]


def test_a_disk_that_is_full_when_a_stage_is_whole_is_told(toys, monkeypatch):
    committed = run_directory.commit_directory

    def full(partial, path):
        if path.name == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        committed(partial, path)

    monkeypatch.setattr(run_directory, "commit_directory", full)
    with pytest.raises(AyaError, match="stages/b: the disk is full"):
        toys.execute()
    monkeypatch.undo()
    toys.execute()
    assert toys.ran == ["b", "c", "d"]
    assert (toys.path / "stages" / "b" / "attempts").read_text() == "xx"


def hold(path):
    """Start a process that owns the run directory until it is killed."""
    code = (
        "import sys, time\n"
        "from aya_jax.recipe.run_directory import RunDirectory\n"
        "with RunDirectory(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_two_runs_in_one_directory(tmp_path):
    first = hold(tmp_path)
    try:
        with (
            pytest.raises(AyaError, match="another run is at work") as caught,
            RunDirectory(tmp_path),
        ):
            pass
        assert str(tmp_path) in str(caught.value)
        assert "--run_dir" in str(caught.value)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with RunDirectory(tmp_path) as run:
                assert run.state == {"stages": {}}
            return
        except AyaError:
            time.sleep(0.05)
    pytest.fail("the lock of a killed run is still held")


@pytest.mark.parametrize("content", ['{"stages": {"a"', "[]", "{}", '{"stages": {"a": 3}}', "\xff"])
def test_a_damaged_run_json(toys, content):
    toys.execute()
    file = toys.path / "run.json"
    whole = file.read_text()
    file.write_text(content, encoding="latin-1")
    with pytest.raises(AyaError, match=r"run\.json: cannot be read .* remove it to start over"):
        toys.execute()
    assert toys.ran == []
    # The message does not leave the directory locked, and nothing made was touched.
    file.write_text(whole)
    toys.execute()
    assert toys.ran == []


def test_misspelt_names_are_told_with_the_nearest(tmp_path):
    recipe = tmp_path / "my.gin"
    recipe.write_text("train.batch_size = 4\ntrian.steps = 3\n")
    with pytest.raises(AyaError, match=r"'trian'; did you mean 'train'\?") as caught:
        parse_gin([str(recipe)], [])
    assert "my.gin" in str(caught.value) and "line 2" in str(caught.value)
    with pytest.raises(AyaError, match=r"'train' has no parameter 'stesp'; did you mean 'steps'"):
        parse_gin([], ["train.stesp = 3"])
    with pytest.raises(AyaError, match=r"'atlas\.biuld'; did you mean 'build'"):
        parse_gin([], ["atlas.biuld.seed = 3"])


def test_an_unknown_scope_is_told():
    bind("offline_dpo/train.steps = 3", "oflfine_dpo/western/train.steps = 3")
    with pytest.raises(AyaError, match=r"unknown scope 'oflfine_dpo' .*did you mean 'offline_dpo'"):
        check_scopes(["sft/western", "offline_dpo/western"])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("train.steps = \n", "line 1"),
        ("train.steps = [1, 2\n", "line"),
        ("what is this\n", "line 1"),
        ("include 'nowhere.gin'\n", "nowhere.gin"),
    ],
)
def test_a_file_that_is_no_gin(tmp_path, content, fault):
    recipe = tmp_path / "my.gin"
    recipe.write_text(content)
    with pytest.raises(AyaError) as caught:
        parse_gin([str(recipe)], [])
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_gin_file():
    with pytest.raises(AyaError, match=r"nowhere\.gin: no such gin file"):
        parse_gin(["nowhere.gin"], [])


def test_names_are_printed_as_they_are():
    # A teacher's name is the user's; rich would read some as markup, and fail on others.
    told = io.StringIO()
    line = Terminal(told).stage("teacher.[/b]", 1, 1)
    line.close("[red]")
    assert "teacher.[/b]" in told.getvalue() and "[red]" in told.getvalue()
