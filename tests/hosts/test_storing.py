"""Checkpoints and models of several real processes: whole whoever is killed, read by any number."""

import importlib.util
import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from aya_jax.checkpoints.model_directory import load_lineage, load_params, params_fingerprint
from aya_jax.checkpoints.train_store import TrainStore

SCRIPT = "tests/hosts/storing.py"
_SPEC = importlib.util.spec_from_file_location("storing", Path(__file__).with_name("storing.py"))
storing = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(storing)

MOMENTS = [
    (1, "shards are half written"),
    (0, "shards are half written"),
    (1, "shards are written"),
    (0, "one tree is listed"),
    (1, "all is listed"),
    (0, "the name is missing"),
]


@pytest.fixture(scope="module")
def saved(hosts, tmp_path_factory):
    """A folder that two processes of four devices each have saved into."""
    folder = tmp_path_factory.mktemp("saved")
    ended = hosts.run([SCRIPT, "save", folder], count=2, devices=8)
    assert [each.status for each in ended] == [0, 0], ended
    return folder


def restored(folder):
    """The newest checkpoint, as one process on one device reads it."""
    step, state = TrainStore(folder).restore(None, storing.state_at(0))
    expected = storing.state_at(step)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    return step


@pytest.mark.slow
def test_what_two_processes_saved_one_and_four_read(hosts, saved):
    assert restored(saved / "checkpoints") == 2
    ended = hosts.run([SCRIPT, "restore", saved / "checkpoints"], count=4, devices=8)
    assert [each.status for each in ended] == [0] * 4, ended
    assert {each.out for each in ended} == {'["checkpoints", 2]\n'}
    assert [path.name for path in sorted((saved / "checkpoints").iterdir())] == [
        "step_00000001",
        "step_00000002",
    ]


@pytest.mark.slow
def test_a_model_of_two_processes_is_that_of_one(saved):
    params = storing.params_at(2)
    assert load_lineage(saved)["params_fingerprint"] == params_fingerprint(params)
    assert params_fingerprint(load_params(saved)) == params_fingerprint(params)


@pytest.mark.slow
def test_a_folder_that_all_fill_is_whole(saved):
    assert sorted(path.name for path in (saved / "together").iterdir()) == ["0", "1"]
    there = {path.name for path in saved.iterdir()} - {"config.json", "lineage.json"}
    assert there == {"checkpoints", "together", "params", "params.checksums.json"}


@pytest.mark.slow
def test_whoever_is_killed_whenever_a_whole_checkpoint_is_left(hosts, tmp_path):
    whole = {}
    for victim, moment in MOMENTS:
        folder = tmp_path / f"{victim} {moment}"
        started = hosts.start([SCRIPT, "killed", folder, victim, moment], count=2, devices=4)
        try:
            assert started[victim].wait(timeout=120) == -signal.SIGKILL
        finally:
            for process in started:
                process.kill()
                process.communicate()
        whole[folder] = restored(folder)
        # Where all shards are whole and listed, the lead needs nobody to give them their name.
        assert whole[folder] == 1 or (whole[folder] == 2 and moment == "all is listed")
    ended = hosts.run([SCRIPT, "restore", *whole], count=4, devices=8)
    assert [each.status for each in ended] == [0] * 4, ended
    for each in ended:
        lines = list(map(json.loads, each.out.splitlines()))
        assert lines == [[folder.name, step] for folder, step in whole.items()]
    for folder, step in whole.items():
        kept = TrainStore(folder)
        kept.save(3, storing.state_at(3))
        kept.close()
        assert restored(folder) == 3
        left = sorted(path.name for path in folder.iterdir())
        assert left == [f"step_{step:08d}", "step_00000003"]


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_is_told_by_all(hosts, tmp_path):
    ended = hosts.run([SCRIPT, "full", tmp_path], count=2, devices=4)
    assert [each.status for each in ended] == [0, 0], ended
    told = {each.out for each in ended}
    assert len(told) == 1 and "the disk is full; free some space" in told.pop()
    assert restored(tmp_path) == 2


@pytest.mark.slow
def test_all_fall_back_from_a_damaged_newest_with_the_same_words(hosts, saved, tmp_path):
    said = []
    for how in ("a flipped bit", "the last byte cut off", "gone"):
        folder = shutil.copytree(saved / "checkpoints", tmp_path / how)
        newest = folder / "step_00000002"
        # Of two processes the second alone looks at every other file of the listing.
        listed = list(json.loads((newest / "rest.checksums.json").read_text()))
        file = newest / "rest" / listed[1::2][-1]
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(content if how == "a flipped bit" else content[:-1])
        fault = "is missing" if how == "gone" else "is damaged"
        advice = f"restore the checkpoint from a copy, or remove {newest} and make it again"
        said += [f"{file}: {fault}; {advice}; trying the checkpoint before", f'["{how}", 1]']
    folders = [tmp_path / each for each in ("a flipped bit", "the last byte cut off", "gone")]
    ended = hosts.run([SCRIPT, "restore", *folders], count=2, devices=4)
    assert [each.status for each in ended] == [0, 0], ended
    assert [each.out.splitlines() for each in ended] == [said, said]
