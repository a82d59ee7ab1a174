"""A few of the faults of docs/reliability.md, and that a broken promise would be told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_faults_are_gone_on_from_or_refused(tmp_path):
    # A process of its own: what it forks must not have begun anything. A recipe that is killed in each
    # of its stages is tested in tests/recipe.
    command = [
        *(sys.executable, "tests/faults/inject.py", "--count", "12", "--seed", "5"),
        *("--place", str(tmp_path), "--without", "lost_process", "one_terminated", "recipe_struck"),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "faults, 0 promises broken" in ended.stdout
