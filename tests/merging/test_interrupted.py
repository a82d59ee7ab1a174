"""A merge that is killed is gone on from by the same command, and ends with the same bytes."""

import fcntl
import hashlib
import importlib.util
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aya_jax.checkpoints import slices
from aya_jax.errors import AyaError
from aya_jax.merging import journal, outputs, stored, writer
from aya_jax.merging.merge import merge

TENSORS = 30
SCRIPT = Path(__file__).with_name("die.py")
_SPEC = importlib.util.spec_from_file_location("die", SCRIPT)
die = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(die)


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    """Three models and their base."""
    place, config = tmp_path_factory.mktemp("models"), tiny.config_of("llama")
    return [
        tiny.make(place / str(seed), "packed", config, tiny.params_of(config, seed))
        for seed in range(4)
    ]


@pytest.fixture
def small(monkeypatch):
    """The sizes that the script has, in this process; they are put back."""
    for place in (slices, outputs):
        monkeypatch.setattr(place, "CHUNK", None)
    for place, names in ((stored, ("PART", "AT_ONCE")), (writer, ("SEALED",))):
        for name in names:
            monkeypatch.setattr(place, name, None)
    die.small()


@pytest.fixture
def merged(monkeypatch):
    """The names of the tensors that are merged from now on."""
    names, work = [], stored._merge_tensor

    def watched(job, parts, *rest):
        names.append(parts[0].tensor.name)
        work(job, parts, *rest)

    monkeypatch.setattr(stored, "_merge_tensor", watched)
    return names


def bytes_in(folder):
    """The checksum of every file, by its path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def interrupted(monkeypatch, count, **settings):
    """Merge until the journal is to be written for the so-many-th time."""
    add, come = journal.Journal.add, 0

    def watched(self, sums):
        nonlocal come
        come += 1
        if come >= count:
            raise KeyboardInterrupt
        add(self, sums)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "add", watched)
        with pytest.raises(KeyboardInterrupt):
            merge(**settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "moment", "count", "kept"),
    [
        ("aya", "a tensor is written", 9, 8),
        # The embedding is in two pieces.
        ("hugging_face", "a piece is half written", 9, 7),
        ("hugging_face", "all is written", 1, 30),
    ],
)
def test_killed_and_gone_on_with(models, tmp_path, small, merged, form, moment, count, kept):
    settings = {"models": models[:3], "base": models[3], "method": "ties", "form": form}
    expected = bytes_in(merge(**settings, out=tmp_path / "whole"))
    everything = list(merged)
    merged.clear()
    out = tmp_path / "out"
    ended = subprocess.run(
        [sys.executable, SCRIPT, moment, str(count), out, form, "ties", models[3], *models[:3]],
        cwd=Path(__file__).parents[2],
    )
    assert ended.returncode == -signal.SIGKILL and not out.exists()
    merge(**settings, out=out)
    assert bytes_in(out) == expected
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    # What was noted is not done again, and the rest is.
    assert sorted(merged) == sorted(everything[kept:])


def test_what_is_asked_for_anew_is_made_anew(tiny, models, tmp_path, monkeypatch, small, merged):
    first = tiny.make(
        tmp_path / "first", "packed", tiny.config_of(), tiny.params_of(tiny.config_of(), 0)
    )
    settings = {"models": [first, models[1]], "out": tmp_path / "out"}
    changes = ({"weights": [0.3, 0.7]}, {"form": "hugging_face"}, {"dtype": "float16"}, "a model")
    for changed in changes:
        interrupted(monkeypatch, 6, **settings)
        if changed == "a model":
            shutil.rmtree(first)
            tiny.make(first, "packed", tiny.config_of(), tiny.params_of(tiny.config_of(), 9))
            changed = {}
        asked = {**settings, **changed}
        merged.clear()
        found = bytes_in(merge(**asked))
        assert len(merged) == TENSORS
        shutil.rmtree(tmp_path / "out")
        assert found == bytes_in(merge(**{**asked, "out": tmp_path / "again"}))
        shutil.rmtree(tmp_path / "again")


@pytest.mark.parametrize("form", ["aya", "hugging_face"])
def test_what_a_kill_has_damaged_is_merged_again(
    models, tmp_path, monkeypatch, small, merged, form
):
    settings = {"models": models[:2], "form": form}
    expected = bytes_in(merge(**settings, out=tmp_path / "whole"))
    interrupted(monkeypatch, 8, **settings, out=tmp_path / "out")
    left = tmp_path / ".out.unfinished"
    [noted] = left.glob("merge.journal.*")
    lines = noted.read_bytes().splitlines()
    # The last entry is cut short; the first tensor's bytes are not what was written.
    noted.write_bytes(b"\n".join(lines)[:-20])
    file = left / ("params/embedding/0.0" if form == "aya" else "model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if form == "hugging_face":
        content[8 + int.from_bytes(content[:8], "little")] ^= 1
    file.write_bytes(content)
    merged.clear()
    assert bytes_in(merge(**settings, out=tmp_path / "out")) == expected
    # Of seven that were noted.
    assert merged[0] == "model.embed_tokens.weight"
    assert len(merged) == TENSORS - 7 + 2


def test_an_error_leaves_nothing(models, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.Ours, "write", full)
    with pytest.raises(AyaError, match="the disk is full; free some space"):
        merge(models[:2], out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_one_place_is_filled_by_one_process(models, tmp_path):
    (tmp_path / ".out.unfinished").mkdir()
    with open(tmp_path / ".out.unfinished" / "lock", "ab") as lock:
        # As another process would: it is the open file that holds the lock.
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AyaError, match="another process is making it"):
            merge(models[:2], out=tmp_path / "out")
    merge(models[:2], out=tmp_path / "out")
