"""`detached.sh`: a command that outlives who follows it."""

import os
import signal
from pathlib import Path


def waits_for(file: Path) -> str:
    return f"while [[ ! -e {file} ]]; do sleep 0.05; done"


def test_it_shows_what_the_command_says_and_ends_as_it_does(tmp_path, call):
    folder = str(tmp_path / "a b")
    done = call(
        "detached.sh", folder, "--", "bash", "-c", 'echo "$0"; echo two >&2; exit 5', "it's"
    )
    assert (done.returncode, done.stdout) == (5, "it's\ntwo\n")
    assert call("detached.sh", "--busy", folder).returncode == 1
    # The log goes on, what is followed is the new command's alone.
    assert call("detached.sh", folder, "--", "echo", "three").stdout == "three\n"
    assert call("detached.sh", "--follow", folder).stdout == "it's\ntwo\nthree\n"


def test_it_outlives_its_follower_and_is_followed_by_the_same_call(tmp_path, call, begin):
    folder, go, count, said = (tmp_path / name for name in ("d", "go", "count", "said"))
    body = f"echo x >> {count}; echo one; {waits_for(go)}; echo two; exit 3"
    args = (str(folder), "--", "bash", "-c", body)
    follower = begin("detached.sh", *args, until=count)
    follower.send_signal(signal.SIGKILL)
    follower.wait()
    assert call("detached.sh", "--busy", str(folder)).returncode == 0
    second = begin("detached.sh", *args, until=said, output=said)
    go.touch()
    assert second.wait(timeout=20) == 3
    assert said.read_text() == "one\ntwo\n"
    assert count.read_text() == "x\n"
    assert (folder / "log").read_text() == "one\ntwo\n"


def test_what_is_stopped_saves_itself_and_is_told_as_an_interrupt(tmp_path, call, begin):
    folder, started = tmp_path / "d", tmp_path / "started"
    body = f"trap 'echo saved; exit 75' TERM; echo x > {started}; sleep 60 & wait"
    follower = begin("detached.sh", str(folder), "--", "bash", "-c", body, until=started)
    done = call("detached.sh", "--stop", str(folder))
    assert (done.returncode, done.stdout) == (0, "saved\n")
    assert follower.wait(timeout=20) == 130
    assert call("detached.sh", "--stop", str(folder)).returncode == 0
    assert call("detached.sh", str(folder), "--", "true").returncode == 0


def test_what_was_killed_with_its_watcher_is_told_as_killed(tmp_path, begin):
    folder = tmp_path / "d"
    follower = begin("detached.sh", str(folder), "--", "sleep", "60", until=folder / "pid")
    os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)
    assert follower.wait(timeout=20) == 137


def test_where_nothing_ran_it_says_so(tmp_path, call):
    assert call("detached.sh", "--busy", str(tmp_path / "none")).returncode == 1
    done = call("detached.sh", "--follow", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing has run" in done.stderr
