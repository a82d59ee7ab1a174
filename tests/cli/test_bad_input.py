"""A user's mistake, or a machine's: one line on stderr that says what to do, and nothing is lost."""

import gc
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MICRO = "tests/recipe/micro.gin"


def assert_refused(result, *words, status=1):
    """One line on stderr with the words in it, the exit status, and no traceback."""
    code, _, error = result
    assert code == status
    lines = error.splitlines()
    assert len(lines) == 1, error
    assert lines[0].startswith("aya")
    for word in words:
        assert str(word) in lines[0], lines[0]


def contents(folder):
    """Return every file under a folder with its bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True)
def _nothing_that_was_there_is_touched(request):
    if "shelf" not in request.fixturenames:
        yield
        return
    path = request.getfixturevalue("shelf").path
    before = contents(path)
    yield
    assert contents(path) == before


# Records.

GOOD = '{"prompt": "Hallo", "completion": "Hi", "chosen": "Hi", "rejected": "no", "language": "de"}'
BAD_LINES = {
    "not JSON": (b'{"prompt": "Hallo"', "not JSON"),
    "not an object": (b'["Hallo"]', "must be a JSON object"),
    "not UTF-8": ('{"prompt": "Gr\xfc\xdfe"}'.encode("latin-1"), "save the file as UTF-8"),
    "language": (GOOD.replace('"de"', '"deu"').encode(), "unknown language 'deu'"),
    "type": (GOOD.replace('"Hallo"', "3").encode(), "field 'prompt' must be a string"),
    "no prompt": (GOOD.replace('"prompt"', '"promt"').encode(), "field 'prompt' is missing"),
    "messages": (b'{"messages": "Hallo"}', "field 'messages' must be a list"),
    "half a surrogate": (GOOD.replace("Hallo", "\\ud800").encode(), "field 'prompt'"),
}


def verbs_with_data(shelf, data, out):
    return {
        "sft": ("--model", shelf.model, "--data", data, "--out", out),
        "dpo": ("--model", shelf.model, "--data", data, "--out", out),
        "reward": ("--model", shelf.model, "--data", data, "--out", out),
        "generate": ("--model", shelf.model, "--data", data, "--out", out),
        "arbitrate": (
            *("--data", data, "--teachers", shelf.model),
            *("--reward", shelf.reward, "--out", out),
        ),
        "evaluate": ("--model", shelf.model, "--data", data, "--judge", shelf.reward, "--out", out),
    }


VERBS_WITH_DATA = ("sft", "dpo", "reward", "generate", "arbitrate", "evaluate")


@pytest.mark.parametrize("fault", sorted(BAD_LINES))
@pytest.mark.parametrize("verb", VERBS_WITH_DATA)
def test_a_bad_line_is_named_by_file_and_number(aya, shelf, tmp_path, verb, fault):
    line, words = BAD_LINES[fault]
    data = tmp_path / "mine.jsonl"
    data.write_bytes(GOOD.encode() + b"\n\n" + line + b"\n" + GOOD.encode() + b"\n")
    before = contents(tmp_path)
    result = aya(verb, *verbs_with_data(shelf, data, tmp_path / "out")[verb])
    assert_refused(result, f"{data}:3: ", words)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("verb", VERBS_WITH_DATA)
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file(aya, shelf, tmp_path, verb, content):
    data = tmp_path / "mine.jsonl"
    data.write_text(content)
    result = aya(verb, *verbs_with_data(shelf, data, tmp_path / "out")[verb])
    assert_refused(result, data, "is empty; at least one record is needed")
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize("verb", VERBS_WITH_DATA)
def test_a_missing_file(aya, shelf, tmp_path, verb):
    data = tmp_path / "nowhere.jsonl"
    result = aya(verb, *verbs_with_data(shelf, data, tmp_path / "out")[verb])
    assert_refused(result, data, "no such file; check the path")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_and_a_broken_archive_are_no_files_of_records(aya, shelf, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    arguments = ("--model", shelf.model, "--out", tmp_path / "out", "--data")
    assert_refused(aya("sft", *arguments, folder), folder, "cannot be read")
    archive = tmp_path / "mine.jsonl.gz"
    archive.write_bytes(b"this is not gzip")
    assert_refused(aya("sft", *arguments, archive), archive, "cannot be read")


@pytest.mark.parametrize(
    ("verb", "field"), [("sft", "completion"), ("dpo", "chosen"), ("reward", "rejected")]
)
def test_a_missing_field(aya, shelf, tmp_path, verb, field):
    row = json.loads(GOOD)
    del row[field]
    data = tmp_path / "mine.jsonl"
    data.write_text(GOOD + "\n" + json.dumps(row) + "\n")
    result = aya(verb, *verbs_with_data(shelf, data, tmp_path / "out")[verb])
    assert_refused(result, f"{data}:2: field '{field}' is missing")
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize("verb", VERBS_WITH_DATA)
def test_a_prompt_longer_than_the_context(aya, shelf, tmp_path, verb):
    row = {**json.loads(GOOD), "id": "the-long-one", "prompt": "Montag " * 200}
    data = tmp_path / "mine.jsonl"
    data.write_text(GOOD + "\n" + json.dumps(row) + "\n")
    result = aya(verb, *verbs_with_data(shelf, data, tmp_path / "out")[verb])
    # Prompts to be answered are told by their number, records to be learnt by their id.
    learnt = verb in ("sft", "dpo", "reward")
    assert_refused(result, "the context of", "shorten it", "the-long-one" if learnt else "prompt 2")
    assert list(tmp_path.iterdir()) == [data]


# Models.


@pytest.mark.parametrize("part", ["", "config.json", "tokenizer.model", "lineage.json", "params"])
def test_a_missing_part_of_a_model(aya, shelf, tmp_path, part):
    place = tmp_path / "model"
    if part:
        shelf.copy("model", place)
        target = place / part
        target.rename(tmp_path / "taken")
    result = aya("generate", "--model", place, "--prompt", "Hallo")
    assert_refused(result, place, "is missing" if part == "params" else "no such")


def flip(file):
    """Change one byte in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize(
    "verb", ["generate", "sft", "dpo", "reward", "merge", "evaluate", "arbitrate"]
)
def test_a_damaged_checkpoint_is_named(aya, shelf, tmp_path, verb):
    place = shelf.copy("model", tmp_path / "damaged")
    file = largest(place / "params")
    flip(file)
    out = tmp_path / "out"
    arguments = {
        "generate": ("--model", place, "--data", shelf.prompts, "--out", out),
        "sft": ("--model", place, "--data", shelf.sft, "--out", out),
        "dpo": ("--model", shelf.model, "--reference", place, "--data", shelf.pairs, "--out", out),
        "reward": ("--model", place, "--data", shelf.pairs, "--out", out),
        "merge": ("--models", shelf.model, place, "--out", out),
        "evaluate": (
            *("--model", shelf.model, "--opponent", place, "--data", shelf.prompts),
            *("--judge", shelf.reward, "--out", out),
        ),
        "arbitrate": (
            *("--teachers", shelf.model, place, "--data", shelf.prompts),
            *("--reward", shelf.reward, "--out", out),
        ),
    }
    assert_refused(aya(verb, *arguments[verb]), file, "is damaged; restore the checkpoint")
    assert list(tmp_path.iterdir()) == [place]


def test_a_truncated_checkpoint_and_an_unreadable_listing(aya, shelf, tmp_path):
    place = shelf.copy("model", tmp_path / "model")
    file = largest(place / "params")
    file.write_bytes(file.read_bytes()[:-1])
    assert_refused(aya("generate", "--model", place, "--prompt", "a"), file, "is damaged")
    place = shelf.copy("model", tmp_path / "again")
    for name, content in {
        "config.json": "{",
        "lineage.json": "[]",
        "tokenizer.model": "no sentencepiece",
        "params.checksums.json": "]",
    }.items():
        whole = (place / name).read_bytes()
        (place / name).write_text(content)
        assert_refused(aya("generate", "--model", place, "--prompt", "a"), place)
        (place / name).write_bytes(whole)
    assert aya("generate", "--model", place, "--prompt", "a")[0] == 0


def test_a_family_that_is_not_supported(aya, shelf, tmp_path):
    place = shelf.copy("model", tmp_path / "model")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    result = aya("generate", "--model", place, "--prompt", "a")
    assert_refused(result, "config.json", "model_type 'gpt2' is not supported")


def test_models_in_each_others_place(aya, shelf, tmp_path):
    result = aya("generate", "--model", shelf.reward, "--prompt", "a")
    assert_refused(result, shelf.reward, "is a reward model, but a language model is needed")
    out = tmp_path / "out"
    arguments = ("--data", shelf.prompts, "--teachers", shelf.model, "--out", out)
    result = aya("arbitrate", *arguments, "--reward", shelf.other)
    assert_refused(result, shelf.other, "is a language model, but a reward model is needed")
    result = aya("merge", "--models", shelf.model, shelf.reward, "--out", out)
    assert_refused(result, "the models differ at 'score'")
    assert list(tmp_path.iterdir()) == []


def test_merges_that_make_no_sense(aya, shelf, tmp_path):
    two = ("--models", shelf.model, shelf.other, "--out", tmp_path / "out")
    assert_refused(aya("merge", *two, "--method", "tise"), "did you mean 'ties'")
    assert_refused(aya("merge", *two, "--method", "ties"), "needs a base", "--base")
    assert_refused(aya("merge", *two, "--weights", 0.5, 0.4), "sum to 0.9; they must sum to 1")
    assert_refused(aya("merge", *two, "--weights", 1), "1 weights for 2 models")
    assert_refused(
        aya("merge", *two, "--method", "ties", "--base", shelf.model, "--density", 1.5), "density"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_pool_that_does_not_answer(aya, shelf, tmp_path):
    recorded = tmp_path / "recorded.jsonl"
    recorded.write_text('{"prompt": "another", "completion": "answer", "language": "de"}\n')
    result = aya(
        *("arbitrate", "--data", shelf.prompts, "--teachers", recorded),
        *("--reward", shelf.reward, "--out", tmp_path / "out"),
    )
    assert_refused(result, "no member of the pool answered it; leave it out or add a member")
    assert list(tmp_path.iterdir()) == [recorded]


# Places to write to.


@pytest.mark.parametrize("verb", ["sft", "dpo", "reward", "arbitrate", "merge"])
def test_an_out_that_exists_is_left_alone(aya, shelf, tmp_path, verb):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    arguments = {
        **verbs_with_data(shelf, shelf.pairs if verb != "sft" else shelf.sft, out),
        "merge": ("--models", shelf.model, shelf.other, "--out", out),
    }
    assert_refused(aya(verb, *arguments[verb]), out, "exists already; remove it or give another")
    assert contents(tmp_path) == {out / "mine": b"precious"}


@pytest.mark.parametrize("verb", VERBS_WITH_DATA)
def test_a_place_under_a_file(aya, shelf, tmp_path, verb):
    file = tmp_path / "file"
    file.write_text("precious")
    data = shelf.sft if verb == "sft" else shelf.pairs
    result = aya(verb, *verbs_with_data(shelf, data, file / "out")[verb])
    assert_refused(result, file)
    assert contents(tmp_path) == {file: b"precious"}


@contextmanager
def disk(place, options):
    """Mount a small disk, or skip the test where that is not permitted."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        # The frames of an error may still hold files that were mapped into memory.
        gc.collect()
        subprocess.run(["umount", str(place)], check=True)


def writing_verbs(shelf, out):
    return {
        **verbs_with_data(shelf, shelf.prompts, out),
        "sft": ("--model", shelf.model, "--data", shelf.sft, "--out", out),
        "dpo": ("--model", shelf.model, "--data", shelf.pairs, "--out", out),
        "reward": ("--model", shelf.model, "--data", shelf.pairs, "--out", out),
        "merge": ("--models", shelf.model, shelf.other, "--out", out),
        "run": (MICRO, "--run_dir", out),
    }


WRITING_VERBS = (*VERBS_WITH_DATA, "merge", "run")


@pytest.mark.parametrize("verb", WRITING_VERBS)
def test_a_place_that_may_not_be_written(aya, shelf, tmp_path, verb):
    folder = tmp_path / "folder"
    if os.geteuid():
        folder.mkdir()
        folder.chmod(0o555)
        assert_refused(
            aya(verb, *writing_verbs(shelf, folder / "out")[verb]), folder, "permissions"
        )
        assert list(folder.iterdir()) == []
        return
    # Permissions do not bind the superuser; a disk that is mounted read-only does.
    with disk(folder, "size=64k,ro"):
        assert_refused(
            aya(verb, *writing_verbs(shelf, folder / "out")[verb]), folder, "permissions"
        )
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("verb", WRITING_VERBS)
@pytest.mark.parametrize("free", [0, 24 * 1024, 128 * 1024])
def test_a_full_disk(aya, shelf, tmp_path, verb, free):
    folder = tmp_path / "disk"
    size = 256 * 1024
    with disk(folder, f"size={size}"):
        (folder / "mine").write_bytes(b"x" * (size - free))
        out = folder / "out"
        result = aya(verb, *writing_verbs(shelf, out)[verb])
        if free and verb in ("generate", "evaluate", "arbitrate"):
            assert result[0] == 0  # These few records fit.
        else:
            assert_refused(result, folder, "the disk is full", "free some space")
            if verb == "run":
                assert not any(p.name == "params" for p in out.rglob("*"))
            else:
                assert [p.name for p in folder.iterdir()] == ["mine"]
        assert (folder / "mine").read_bytes() == b"x" * (size - free)


def test_a_training_goes_on_when_the_disk_has_room_again(aya, shelf, tmp_path):
    """What a full disk interrupts ends in the bits of one that was not interrupted."""
    arguments = ("--model", shelf.model, "--data", shelf.sft, "--gin_bindings", "train.steps = 4")
    assert aya("sft", *arguments, "--out", tmp_path / "straight")[0] == 0
    folder = tmp_path / "disk"
    with disk(folder, "size=3m"):
        # Room, beside the reserve, for one checkpoint or two (each is 228 to 280 KiB), never a third.
        (folder / "mine").write_bytes(b"x" * ((3 << 20) - (1 << 20) - 400 * 1024))
        out = folder / "out"
        result = aya("sft", *arguments, "--out", out)
        assert_refused(result, folder, "the disk is full")
        assert not out.exists()
        kept = list((folder / "out.partial" / "checkpoints").iterdir())
        assert [place.name[:5] for place in kept] == ["step_"] * len(kept)
        assert kept
        (folder / "mine").unlink()
        assert aya("sft", *arguments, "--out", out)[0] == 0
        lineages = [
            json.loads((place / "lineage.json").read_text())
            for place in (tmp_path / "straight", out)
        ]
        assert lineages[0] == lineages[1]


def test_other_work_is_not_gone_on_from(aya, shelf, tmp_path):
    """What a killed attempt with other settings left does not leak into this one."""
    arguments = ("--model", shelf.model, "--data", shelf.sft)
    assert aya("sft", *arguments, "--out", tmp_path / "straight")[0] == 0
    longer = tmp_path / "longer"
    broken = ("--gin_bindings", "train.learning_rate = 1e9", "--gin_bindings", "train.steps = 6")
    result = aya("sft", *arguments, "--out", longer, *broken)
    if result[0] == 0:
        pytest.fail("this learning rate was meant to break the training")
    assert_refused(result, "lower train.learning_rate")
    assert (tmp_path / "longer.partial" / "checkpoints").is_dir()
    assert aya("sft", *arguments, "--out", longer)[0] == 0
    for name in ("lineage.json", "metrics.jsonl"):
        assert (longer / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


# Configuration and the command itself.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("train.steps = \n", "line 1"),
        ("trian.steps = 3\n", "did you mean 'train'?"),
        ("train.stesp = 3\n", "did you mean 'steps'?"),
        ("include 'nowhere.gin'\n", "nowhere.gin"),
        ("this is prose\n", "line 1"),
        ("train.steps = 3\n\xff\n", "my.gin"),
    ],
)
def test_a_gin_file_with_a_mistake(aya, shelf, tmp_path, content, words):
    recipe = tmp_path / "my.gin"
    recipe.write_text(content, encoding="latin-1")
    arguments = verbs_with_data(shelf, shelf.sft, tmp_path / "out")["sft"]
    assert_refused(aya("sft", *arguments, "--gin_file", recipe), words)
    assert list(tmp_path.iterdir()) == [recipe]


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ("train.steps = %STEPS", "train.steps: nothing sets %STEPS"),
        ("train.batch_size = 'many'", "train.batch_size = 'many': must be int"),
        ("train.batch_size = True", "must be int"),
        ("train.learning_rate = None", "must be float"),
        ("train.batch_size = 0", "train.batch_size"),
        ("lengths.max_length = 4", "shorten it or raise max_length"),
        ("train.accumulate = 3", "must be a positive multiple of train.accumulate"),
        ("train.schedule = 'cosin'", "did you mean 'cosine'?"),
        ("merge_checkpoints.last = 0", "must be at least 1"),
        ("merge_checkpoints.decay = 1.0", "must be above 0 and below 1"),
    ],
)
def test_a_setting_that_makes_no_sense(aya, shelf, tmp_path, binding, words):
    arguments = verbs_with_data(shelf, shelf.sft, tmp_path / "out")["sft"]
    assert_refused(aya("sft", *arguments, "--gin_bindings", binding), words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ("offlien_dpo/train.steps = 3", "did you mean 'offline_dpo'?"),
        ("expanse.baselines = ('single_techer',)", "did you mean 'single_teacher'?"),
        ("expanse.teachers = {}", "teacher"),
        ("expanse.teacher_files = {'mine': 'nowhere.jsonl'}", "nowhere.jsonl"),
        ("language_clusters.groups = {'western': ['de', 'xx']}", "unknown language 'xx'"),
        ("expanse.iteration = 3", "did you mean 'iterations'?"),
    ],
)
def test_a_recipe_with_a_mistake(aya, tmp_path, binding, words):
    bindings = ["--gin_bindings", binding]
    if "teachers = {}" in binding:
        bindings += ["--gin_bindings", "expanse.teacher_files = {}"]
    result = aya("run", MICRO, "--run_dir", tmp_path / "run", *bindings)
    assert_refused(result, words)
    assert not (tmp_path / "run" / "stages" / "tokenizer").exists()


def test_gin_files_that_are_missing(aya, tmp_path):
    run_dir = tmp_path / "run"
    assert_refused(aya("run", "nowhere.gin", "--run_dir", run_dir), "nowhere.gin: no such gin file")
    assert_refused(aya("run", "--run_dir", run_dir), "name a recipe")
    result = aya("sft", "--model", "a", "--data", "b", "--out", "c", "--gin_file", "nowhere.gin")
    assert_refused(result, "nowhere.gin: no such gin file; check the path")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_directory(aya, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "run.json").write_text('{"stages": ')
    result = aya("run", MICRO, "--run_dir", run_dir)
    assert_refused(result, run_dir / "run.json", "remove it to start over")
    assert (run_dir / "run.json").read_text() == '{"stages": '


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sfx"], "unknown verb 'sfx'; did you mean 'sft'?"),
        (["generate"], "--model"),
        (["chat", "--model", "m", "--temprature", "3"], "unknown argument '--temprature'"),
        (["chat", "--model", "m", "--gin_binding_", "a"], "did you mean '--gin_bindings'?"),
        (["merge", "--models", "a", "--out", "b", "--weights", "half"], "--weights"),
        (["run", "a.gin", "b.gin"], "unknown argument 'b.gin'"),
    ],
)
def test_arguments_that_are_not_known(aya, arguments, words):
    assert_refused(aya(*arguments), words, "--help", status=2)


def test_generate_needs_something_to_answer(aya, shelf, tmp_path):
    result = aya("generate", "--model", shelf.model)
    assert_refused(result, "give --prompt, or --data with --out")
    result = aya("generate", "--model", shelf.model, "--data", shelf.prompts)
    assert_refused(result, "give --prompt, or --data with --out")


# The same through the real process.


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "aya_jax", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_the_process_says_one_line_and_fails(shelf, tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text("{\n")
    out = tmp_path / "out"
    done = command("sft", "--model", shelf.model, "--data", data, "--out", out)
    assert_refused((done.returncode, done.stdout, done.stderr), f"{data}:1: not JSON")
    place = shelf.copy("model", tmp_path / "damaged")
    flip(largest(place / "params"))
    done = command("generate", "--model", place, "--prompt", "a")
    assert_refused((done.returncode, done.stdout, done.stderr), "is damaged")
    done = command("sfx")
    assert_refused((done.returncode, done.stdout, done.stderr), "did you mean 'sft'", status=2)


def test_the_process_on_a_full_disk(shelf, tmp_path):
    """No thread of a checkpoint writer prints beside the one line."""
    folder = tmp_path / "disk"
    with disk(folder, "size=64k"):
        done = command("merge", "--models", shelf.model, shelf.other, "--out", folder / "out")
        assert_refused((done.returncode, done.stdout, done.stderr), folder, "the disk is full")
        assert list(folder.iterdir()) == []
