"""`supervise.sh`: what it starts again and what it leaves alone."""

import os
import signal

import pytest


def test_what_was_killed_is_started_again(tmp_path, call):
    count = tmp_path / "count"
    killed_twice = f"echo x >> {count}; (($(wc -l < {count}) > 2)) || kill -9 $$; exit 7"
    done = call("supervise.sh", "--wait", "0", "--", "bash", "-c", killed_twice)
    assert (done.returncode, count.read_text()) == (7, "x\n" * 3)
    assert "restart 2 of 10" in done.stderr


@pytest.mark.parametrize("status", [75, 76, 77, 134, 137, 255])
def test_it_gives_up_in_the_end(status, tmp_path, call):
    count = tmp_path / "count"
    body = f"echo x >> {count}; exit {status}"
    done = call("supervise.sh", "--wait", "0", "--restarts", "2", "--", "bash", "-c", body)
    assert (done.returncode, count.read_text()) == (status, "x\n" * 3)


@pytest.mark.parametrize("status", [0, 1, 2, 74, 78, 128, 130])
def test_an_end_or_an_error_is_left_alone(status, tmp_path, call):
    count = tmp_path / "count"
    body = f"echo x >> {count}; exit {status}"
    done = call("supervise.sh", "--wait", "0", "--", "bash", "-c", body)
    assert (done.returncode, count.read_text()) == (status, "x\n")


def test_a_stop_is_passed_on_and_what_saved_itself_is_not_started_again(tmp_path, begin):
    started = tmp_path / "started"
    body = f"trap 'echo saved >> {started}; exit 75' TERM; echo $$ >> {started}; sleep 60 & wait"
    args = ("--wait", "0", "--", "bash", "-c", body)
    process = begin("supervise.sh", *args, until=started)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    child, *said = started.read_text().split()
    assert said == ["saved"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)


def test_a_stop_between_two_starts_is_heard_at_once(tmp_path, begin):
    count, said = tmp_path / "count", tmp_path / "said"
    body = f"echo x >> {count}; exit 76"
    args = ("--wait", "3600", "--", "bash", "-c", body)
    process = begin("supervise.sh", *args, until=said, output=said)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 76
    assert count.read_text() == "x\n"
