"""Mistakes in the data of a whole run, and a machine's: one line, before work, and nothing is lost."""

import json
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from aya_jax.checkpoints.store import RESERVE
from aya_jax.data.records import write_records

pytestmark = pytest.mark.slow

GOOD = {"id": "good", "language": "de", "prompt": "Hallo", "completion": "Guten Tag"}
LINE = json.dumps(GOOD).encode()
PROMPT_ONLY = json.dumps({k: v for k, v in GOOD.items() if k != "completion"}).encode()
BAD_FILES = {
    "an unknown language": (LINE.replace(b'"de"', b'"ger"'), ":2: unknown language 'ger'"),
    "no JSON": (LINE[:-5], ":2: not JSON"),
    "no UTF-8": ('{"prompt": "Gr\xfc\xdfe"}'.encode("latin-1"), ":2: not UTF-8"),
    "no prompt": (b'{"language": "de"}', ":2: field 'prompt' is missing"),
    "nothing": (None, ": is empty; at least one record is needed"),
}
SOURCES = {
    "prompts": "prompts/source.records.source = '{}'",
    "evaluation prompts": "evaluation_prompts/source.records.source = '{}'",
    "reward prompts": "reward_prompts/source.records.source = '{}'",
    "a teacher's lessons": "teachers/west/source.records.source = '{}'",
    "recorded answers": "expanse.teacher_files = {{'recorded': '{}'}}",
    "text": "source.text.source = '{}'",
}


# Text may have any fields.
CASES = [
    (use, fault) for use in SOURCES for fault in BAD_FILES if (use, fault) != ("text", "no prompt")
]


@pytest.mark.parametrize(("use", "fault"), CASES)
def test_a_bad_file_is_told_before_any_work(aya_here, tmp_path, use, fault):
    line, words = BAD_FILES[fault]
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b"" if line is None else LINE + b"\n" + line + b"\n")
    told = aya_here(tmp_path / "run", SOURCES[use].format(file))
    assert told.startswith(f"aya run: {file}{words}"), told
    assert not list(tmp_path.glob("run/stages/*"))


@pytest.mark.parametrize("use", SOURCES)
def test_a_file_that_is_not_there(aya_here, tmp_path, use):
    file = tmp_path / "mine.jsonl"
    told = aya_here(tmp_path / "run", SOURCES[use].format(file))
    assert told.startswith(f"aya run: {file}: ") and "check the path" in told
    assert not list(tmp_path.glob("run/stages/*"))


@pytest.mark.parametrize("use", ["a teacher's lessons", "recorded answers"])
def test_a_completion_is_missing(aya_here, tmp_path, use):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(LINE + b"\n" + PROMPT_ONLY + b"\n")
    told = aya_here(tmp_path / "run", SOURCES[use].format(file))
    assert f"{file}:2: field 'completion' is missing" in told
    assert not list(tmp_path.glob("run/stages/*"))


@pytest.mark.parametrize("use", ["prompts", "evaluation prompts", "reward prompts"])
def test_a_prompt_longer_than_the_context(aya_here, tmp_path, use):
    """It is told when the tokenizer is there, and before a model is trained."""
    file = tmp_path / "mine.jsonl"
    long = [{**GOOD, "id": name, "prompt": "Montag " * 200} for name in ("long", "longer")]
    file.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, *long)))
    told = aya_here(tmp_path / "run", SOURCES[use].format(file))
    assert "2 of 3 prompts" in told and "'long'" in told and "shorten" in told, told
    assert not list(tmp_path.glob("run/stages/base*"))


LONG = {**GOOD, "id": "long", "completion": "Montag " * 200}
BARE = {k: v for k, v in GOOD.items() if k != "completion"}
UNFIT = {
    "a reward model's example without an answer": (
        *("reward prompts", [GOOD, {**BARE, "id": "bare"}]),
        "'bare': a reward model learns from 'chosen' and 'rejected', or from a good 'completion'",
    ),
    "a reward model's example that is too long": (
        *("reward prompts", [GOOD, LONG]),
        "'long': prompt",
    ),
    "a cluster without a prompt": (
        *("prompts", [GOOD]),
        "there is none in el, en, ru; leave cluster 'eastern' out",
    ),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_what_could_not_be_learnt_is_told_before_a_model_is_trained(aya_here, tmp_path, fault):
    use, rows, words = UNFIT[fault]
    file = write_records(tmp_path / "mine.jsonl", rows)
    told = aya_here(tmp_path / "run", SOURCES[use].format(file))
    assert words in told, told
    assert not list(tmp_path.glob("run/stages/base*"))


def test_a_pool_that_only_has_recorded_answers_must_have_one_for_each_prompt(aya_here, tmp_path):
    rows = [GOOD, {**GOOD, "language": "el", "prompt": "Γεια", "completion": "Καλημέρα"}]
    asked = [
        *rows,
        {**GOOD, "id": "other", "prompt": "Hallo?"},
        {**GOOD, "id": "more", "prompt": "?"},
    ]
    prompts = write_records(tmp_path / "prompts.jsonl", asked)
    recorded = write_records(tmp_path / "recorded.jsonl", rows)
    told = aya_here(
        tmp_path / "run",
        "expanse.teachers = {}",
        SOURCES["prompts"].format(prompts),
        SOURCES["recorded answers"].format(recorded),
    )
    assert "2 of 4 have no recorded answer" in told and "'other'" in told
    assert not list(tmp_path.glob("run/stages/base*"))


def test_a_service_for_curves_that_nothing_knows(aya_here, tmp_path):
    told = aya_here(tmp_path / "run", "offline_dpo/metrics.sinks = ['wandbb']")
    assert "unknown service 'wandbb'; did you mean 'wandb'" in told
    assert not list(tmp_path.glob("run/stages/*"))


def test_teachers_of_one_name(aya_here, tmp_path):
    told = aya_here(
        tmp_path / "run", "expanse.teacher_files = {'west': 'tests/recipe/recorded.jsonl'}"
    )
    assert "'west' is in teachers and in teacher_files; rename one" in told


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def test_a_damaged_model_of_an_earlier_stage(copied, aya, unbroken):
    """What the message says to do helps: the stage is made again, and nothing else."""
    stage = copied.path / "stages" / "offline_dpo"
    file = max((p for p in (stage / "params").rglob("*") if p.is_file()), key=_size)
    flip(file)
    shutil.rmtree(copied.path / "stages" / "evaluate.offline_dpo")
    files = copied.files()
    line = aya.refused(copied.path)
    assert f"{file}: is damaged; restore the checkpoint from a copy, or remove {stage}" in line
    assert copied.files().items() >= files.items()
    shutil.rmtree(stage)
    told = aya.succeed(copied.path)
    assert "36 of 38 stages were whole already" in told
    assert copied.parameters() == unbroken.parameters()
    assert copied.report() == unbroken.report()


def _size(path):
    return path.stat().st_size


@contextmanager
def disk(place, options):
    """Mount a small disk, or skip the test where that is not permitted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_and_one_that_may_not_be_written(unbroken, aya, run_of, tmp_path):
    folder = tmp_path / "disk"
    with disk(folder, "size=64m"):
        run = run_of(shutil.copytree(unbroken.path, folder / "run"))
        for stage in ("western", "eastern"):
            shutil.rmtree(run.path / "stages" / f"online_dpo_2.{stage}")
        shutil.rmtree(run.path / "stages" / "online_dpo_2")
        files = run.files()
        # Room for one checkpoint or two of the training, and for no more.
        room = RESERVE + 500 * 1024
        (folder / "mine").write_bytes(b"x" * (shutil.disk_usage(folder).free - room))
        line = aya.refused(run.path)
        assert "the disk is full" in line and "free some space and run it again" in line
        assert str(run.path / "stages") in line
        assert {name: run.files()[name] for name in files} == files
        assert (run.path / "stages" / "online_dpo_2.western.partial").is_dir()
        assert not (run.path / "stages" / "online_dpo_2.western").exists()
        (folder / "mine").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        line = aya.refused(run.path)
        assert str(run.path) in line and "cannot be written; check the permissions" in line
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        aya.succeed(run.path)
        assert run.parameters() == unbroken.parameters()
        assert run.files() == unbroken.files()
        assert run.report() == unbroken.report()
