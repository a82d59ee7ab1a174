"""The history of a training that was killed and went on is that of an unbroken one."""

import json
import resource

import pytest

from aya_jax.metrics import HISTORY, MetricWriter, read_history, read_rows

ROWS = [{"step": step, "loss": 1.0 / step, "rate": 0.1 * step} for step in range(1, 8)]


def write(directory, steps, **settings):
    with MetricWriter(directory, **settings) as metrics:
        for row in ROWS:
            if row["step"] in steps:
                metrics.write(row["step"], {k: v for k, v in row.items() if k != "step"})


@pytest.fixture
def unbroken(tmp_path):
    (tmp_path / "unbroken").mkdir()
    write(tmp_path / "unbroken", range(1, 8))
    return (tmp_path / "unbroken" / HISTORY).read_bytes()


def test_what_was_written_is_read(tmp_path, unbroken):
    assert read_rows(tmp_path / "unbroken" / HISTORY) == ROWS
    history = read_history(tmp_path / "unbroken")
    assert set(history) == {"loss", "rate"}
    assert history["loss"] == [[row["step"], row["loss"]] for row in ROWS]


@pytest.mark.parametrize("resume_step", [0, 2, 4, 5])
def test_rows_after_the_checkpoint_are_dropped(tmp_path, unbroken, resume_step):
    write(tmp_path, range(1, 6))
    write(tmp_path, range(resume_step + 1, 8))
    assert (tmp_path / HISTORY).read_bytes() == unbroken
    assert {path.name for path in tmp_path.iterdir()} == {HISTORY, "unbroken"}


def test_every_place_where_the_last_line_may_be_cut(tmp_path, unbroken):
    write(tmp_path, range(1, 4))
    whole = (tmp_path / HISTORY).read_bytes()
    second = len(b"".join(whole.splitlines(keepends=True)[:2]))
    for end in range(second, len(whole)):
        (tmp_path / HISTORY).write_bytes(whole[:end])
        # A line that only lacks its end is whole; no other one is half read.
        assert read_rows(tmp_path / HISTORY) == ROWS[: 3 if end == len(whole) - 1 else 2]
        write(tmp_path, range(3, 8))
        assert (tmp_path / HISTORY).read_bytes() == unbroken


def test_a_row_is_on_the_disk_before_the_next_step(tmp_path):
    with MetricWriter(tmp_path) as metrics:
        metrics.write(1, {"loss": 2.0})
        assert read_rows(tmp_path / HISTORY) == [{"step": 1, "loss": 2.0}]


def test_there_may_be_no_history(tmp_path):
    assert read_rows(tmp_path / HISTORY) == [] and read_history(tmp_path) == {}


def test_timing_goes_to_the_events_alone(tmp_path):
    with MetricWriter(tmp_path, events=tmp_path / "events") as metrics:
        metrics.write(1, {"loss": 2.0}, timing={"tokens_per_second": 123.0})
    assert json.loads((tmp_path / HISTORY).read_text()) == {"step": 1, "loss": 2.0}
    [file] = (tmp_path / "events").iterdir()
    data = file.read_bytes()
    assert b"tokens_per_second" in data and b"loss" in data


def test_what_cannot_be_written_is_raised_at_once(tmp_path):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def write_some():
        for step in range(1, 8):
            metrics.write(step, {"loss": 2.0})

    with MetricWriter(tmp_path, events=tmp_path / "events") as metrics:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                write_some()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
