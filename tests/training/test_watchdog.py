"""A stuck process ends with its own status, and tells where it was stuck."""

import subprocess
import sys

from aya_jax.training.watchdog import STUCK, Watchdog

SOURCE = """
import threading
from pathlib import Path
from aya_jax.training.watchdog import Watchdog

def a_step_that_does_not_end():
    threading.Event().wait()

with Watchdog(Path({file!r}), 0.2) as dog:
    dog.beat(12)
    a_step_that_does_not_end()
"""


def test_the_stacks_of_a_stuck_process_are_written(tmp_path):
    file = tmp_path / "incidents" / "stuck.txt"
    source = SOURCE.format(file=str(file))
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert ended.returncode == STUCK == 76, ended.stderr
    for told in (ended.stderr, file.read_text()):
        assert "in a_step_that_does_not_end" in told
        assert "for 0.2 s after step 12 (watchdog.limit)" in told


def test_a_disk_that_cannot_be_written_keeps_it_from_nothing(tmp_path):
    place = tmp_path / "file"
    place.write_text("in the way")
    source = SOURCE.format(file=str(place / "stuck.txt"))
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert ended.returncode == STUCK and "in a_step_that_does_not_end" in ended.stderr


def test_what_ends_in_time_or_has_no_limit_goes_on(tmp_path):
    for limit in (3600.0, None):
        with Watchdog(tmp_path / "stuck.txt", limit) as dog:
            dog.beat(1)
    assert not list(tmp_path.iterdir())
