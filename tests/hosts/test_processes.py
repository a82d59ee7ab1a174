import json
import signal
import socket

import jax
import pytest

from aya_jax.checkpoints.directories import shared_directory
from aya_jax.errors import AyaError
from aya_jax.sharding.processes import LOST, start_processes

SCRIPT = "tests/hosts/leaving.py"


def leaving(hosts, how, *arguments):
    return hosts.run([SCRIPT, how, *arguments], count=2, devices=2)


def test_one_whose_others_are_not_there_yet_is_to_be_started_again(monkeypatch, capsys):
    """A node of a cluster may come minutes after the others; jax gives up before."""

    def late(*_, **__):
        raise RuntimeError("Failed to recognize coordinator address aya-slice-0-0.aya")

    monkeypatch.setenv("AYA_PROCESSES", "auto")
    monkeypatch.setattr(jax.distributed, "initialize", late)
    with pytest.raises(SystemExit) as ended:
        start_processes()
    assert ended.value.code == LOST
    assert "aya-slice-0-0.aya" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["taken", "http", "70000"])
def test_a_port_that_cannot_be_had_is_told(monkeypatch, port):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1] if port == 'taken' else port}"
        for name, value in (("PROCESSES", "2"), ("PROCESS", "0"), ("COORDINATOR", address)):
            monkeypatch.setenv(f"AYA_{name}", value)
        with pytest.raises(AyaError, match=f"AYA_COORDINATOR={address}: the port cannot be had"):
            start_processes()


def test_values_of_the_lead_and_of_all_are_told(hosts):
    ended = leaving(hosts, "well")
    assert [each.status for each in ended] == [0, 0], ended
    lead, other = (json.loads(each.out.replace("'", '"')) for each in ended)
    assert lead == other and lead[0] == lead[1] and lead[0][0] == "made"


@pytest.mark.parametrize("how", ["lead fails", "other fails", "all fail"])
def test_one_that_fails_ends_all_with_its_status_and_tells_it_once(hosts, how):
    ended = leaving(hosts, how)
    assert [each.status for each in ended] == [3, 3], ended
    assert (ended[0].err + ended[1].err).count(f"what went wrong: {how}") == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lead fails inside", "other fails inside"])
def test_one_that_fails_in_what_all_do_together_ends_all_at_once(hosts, how, tmp_path):
    ended = leaving(hosts, how, tmp_path / "made")
    assert [each.status for each in ended] == [3, 3], ended
    assert (ended[0].err + ended[1].err).count(f"what went wrong: {how}") == 1
    assert not (tmp_path / "made").exists()
    with shared_directory(tmp_path / "made"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "left", "named"),
    [("lost lead", 1, "the leader task was preempted/died"), ("lost other", 0, "heartbeats):\n1")],
)
def test_one_that_is_lost_ends_the_others_and_is_named(hosts, how, left, named):
    ended = leaving(hosts, how)
    assert ended[1 - left].status == -signal.SIGKILL
    assert ended[left].status == -signal.SIGABRT, ended
    assert named in ended[left].err
