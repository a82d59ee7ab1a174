"""A file or folder is whole or as it was: killed, without room, without permission."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from aya_jax.data.files import (
    atomic_directory,
    atomic_write,
    fingerprint,
    fingerprint_file,
    require_space,
    stable_hash,
    told_plainly,
)
from aya_jax.errors import AyaError

# The process dies here as a machine does that loses its power: nothing of its own runs after it.
DIE = """
import os, resource, signal, sys
from pathlib import Path
from aya_jax.data.files import atomic_directory, atomic_write

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

place = Path(sys.argv[1])
"""


def killed(code, place, by=signal.SIGKILL):
    done = subprocess.run([sys.executable, "-c", DIE + code, str(place)], capture_output=True)
    assert done.returncode == -by, done.stderr.decode()


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
        subprocess.run(["umount", str(place)], check=True)


def write_file(place, content=b"x"):
    atomic_write(place, content)


def write_directory(place, content=b"x"):
    with atomic_directory(place) as partial:
        (partial / "one").write_bytes(content)


def one_line(error):
    return "\n" not in str(error.value)


FILLING = """
import sys
from aya_jax.data.files import atomic_directory

with atomic_directory(sys.argv[1]) as partial:
    (partial / "one").write_bytes(b"half")
    print("filling", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("write", [write_file, write_directory])
def test_what_the_killed_left_is_removed_and_what_is_being_filled_is_not(tmp_path, write):
    place = tmp_path / "out"
    beside = [tmp_path / name for name in (".out.x.tmp", ".out.jsonl.1.tmp", ".other.1.tmp")]
    for other in beside:
        other.touch()
    command = [sys.executable, "-c", FILLING, str(place)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as lost, subprocess.Popen(command, **pipes) as alive:
        assert lost.stdout.readline() == alive.stdout.readline() == b"filling\n"
        lost.kill()
        lost.wait()
        # A file as well as a folder.
        (tmp_path / f".out.{lost.pid}0.tmp").write_bytes(b"half")
        write(place)
        left = set(tmp_path.iterdir())
        alive.kill()
    assert left == {place, tmp_path / f".out.{alive.pid}.tmp", *beside}


def test_a_write_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path):
    place = tmp_path / "file"
    atomic_write(place, "Größe\n")
    assert place.read_bytes() == b"Gr\xc3\xb6\xc3\x9fe\n"
    atomic_write(place, b"\xff\x00")
    assert place.read_bytes() == b"\xff\x00"
    assert list(tmp_path.iterdir()) == [place]


def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    place = tmp_path / "file"
    place.write_text("old")
    # The kernel ends the process at the 100,000th byte of the file.
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
atomic_write(place, b"new" * 1_000_000)
"""
    killed(code, place, by=signal.SIGXFSZ)
    assert place.read_text() == "old"
    beside = [path for path in tmp_path.iterdir() if path != place]
    assert [path.stat().st_size for path in beside] == [100_000]
    assert all(path.name.startswith(".file.") for path in beside)
    atomic_write(place, "newer")
    assert place.read_text() == "newer"


@pytest.mark.parametrize("at", ["os.fsync", "os.replace"])
def test_a_process_killed_before_the_rename_leaves_the_old_file(tmp_path, at):
    place = tmp_path / "file"
    place.write_text("old")
    killed(f"{at} = die\natomic_write(place, 'new')", place)
    assert place.read_text() == "old"


@pytest.mark.parametrize("at", ["die()", "os.fsync = die", "os.rename = die"])
def test_a_process_killed_while_filling_a_folder_leaves_none_under_its_name(tmp_path, at):
    place = tmp_path / "folder"
    code = f"""
with atomic_directory(place) as partial:
    (partial / "one").write_text("1")
    {at}
"""
    killed(code, place)
    assert not place.exists()
    with atomic_directory(place) as partial:
        assert list(partial.iterdir()) == []
        (partial / "two").write_text("2")
    assert [path.name for path in place.iterdir()] == ["two"]


@pytest.mark.parametrize("at", ["die()", "os.fsync = die", "os.rename = die"])
def test_a_process_killed_while_replacing_a_folder_leaves_the_old_one(tmp_path, at):
    place = tmp_path / "folder"
    place.mkdir()
    (place / "one").write_text("old")
    code = f"""
with atomic_directory(place, replace=True) as partial:
    (partial / "one").write_text("new")
    {at}
"""
    killed(code, place)
    assert (place / "one").read_text() == "old"


def test_the_old_folder_is_whole_somewhere_until_the_new_one_has_its_name(tmp_path):
    place = tmp_path / "folder"
    place.mkdir()
    (place / "one").write_text("old")
    code = """
rename = os.rename
def second_dies(source, target):
    if Path(target) == place:
        die()
    rename(source, target)
with atomic_directory(place, replace=True) as partial:
    (partial / "one").write_text("new")
    os.rename = second_dies
"""
    killed(code, place)
    left = {path.suffix: (path / "one").read_text() for path in tmp_path.iterdir()}
    assert left == {".old": "old", ".tmp": "new"}


def test_a_folder_is_not_replaced_unless_asked(tmp_path):
    place = tmp_path / "folder"
    with atomic_directory(place) as partial:
        (partial / "one").write_text("1")
    with pytest.raises(AyaError, match="exists already"), atomic_directory(place):
        pytest.fail("the block must not run")
    with atomic_directory(place, replace=True) as partial:
        (partial / "two").write_text("2")
    assert [path.name for path in place.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [place]


def test_a_folder_whose_filling_fails_is_gone(tmp_path):
    def fail():
        with atomic_directory(tmp_path / "a" / "folder") as partial:
            (partial / "one").write_text("1")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path):
    folder = tmp_path / "disk"
    with disk(folder, "size=256k"):
        place = folder / "file"
        atomic_write(place, b"old")
        with pytest.raises(AyaError, match="the disk is full; free some space") as error:
            atomic_write(place, b"x" * 400_000)
        assert str(place) in str(error.value) and one_line(error)
        assert place.read_bytes() == b"old"
        assert list(folder.iterdir()) == [place]
        with pytest.raises(AyaError, match="the disk is full"):
            write_directory(folder / "model", content=b"x" * 400_000)
        assert list(folder.iterdir()) == [place]
        atomic_write(place, b"x" * 200_000)


def test_room_is_asked_for_before_work_begins(tmp_path):
    folder = tmp_path / "disk"
    with disk(folder, "size=256k"):
        require_space(folder, 200 * 1024)
        with pytest.raises(AyaError, match=r"0\.3 MiB are needed and 0\.2 free"):
            require_space(folder, 300 * 1024)


@pytest.mark.parametrize("write", [write_file, write_directory])
def test_a_place_below_a_regular_file_is_told(tmp_path, write):
    file = tmp_path / "file"
    file.write_text("precious")
    for place in (file / "out", file / "deeper" / "out"):
        with pytest.raises(AyaError, match="lies under a file; give another place") as error:
            write(place)
        assert str(error.value).startswith(str(place)) and one_line(error)
    assert file.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_folder_is_told_for_a_file_and_made_for_a_folder(tmp_path):
    with pytest.raises(AyaError, match="its folder does not exist; create it first"):
        atomic_write(tmp_path / "no" / "file", b"x")
    assert list(tmp_path.iterdir()) == []
    write_directory(tmp_path / "no" / "folder")
    assert (tmp_path / "no" / "folder" / "one").read_bytes() == b"x"


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(AyaError, match="is a folder; give another place"):
        atomic_write(place, b"x")
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("write", [write_file, write_directory])
def test_a_folder_that_may_not_be_written_is_told(tmp_path, write):
    folder = tmp_path / "folder"
    if os.geteuid():
        folder.mkdir()
        folder.chmod(0o555)
        with pytest.raises(AyaError, match="cannot be written; check the permissions") as error:
            write(folder / "out")
        assert one_line(error) and list(folder.iterdir()) == []
        return
    # Permissions do not bind the superuser; a disk that is mounted read-only does.
    with disk(folder, "size=64k,ro"):
        with pytest.raises(AyaError, match="cannot be written; check the permissions") as error:
            write(folder / "out")
        assert one_line(error) and list(folder.iterdir()) == []


def test_refusals_are_known_behind_other_libraries_errors():
    """gin raises a copy without its number, TensorStore names it in the text alone."""
    with pytest.raises(AyaError, match="the disk is full"), told_plainly(Path("here")):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing [os_error_code='28']")
    copy = RuntimeError("a copy")
    copy.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(AyaError, match="the disk is full"), told_plainly(Path("here")):
        raise copy
    with pytest.raises(ValueError, match="another"), told_plainly(Path("here")):
        raise ValueError("another")


def test_fingerprints_follow_from_content_alone(tmp_path):
    assert fingerprint({"b": [1, "é"], "a": None}) == fingerprint(
        json.loads('{"a": null, "b": [1, "\\u00e9"]}')
    )
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    (tmp_path / "empty").touch()
    # The sha256 of nothing, from FIPS 180-4's test vectors.
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert fingerprint_file(tmp_path / "empty") == empty
    assert stable_hash("ab", "c") != stable_hash("a", "bc")
    assert stable_hash() == int(empty[:16], 16)
