"""What a run prints: plain lines into a file, a bar on a terminal."""

import io
import re

import pytest

from aya_jax import progress
from aya_jax.progress import Terminal


class Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    # rich asks these what kind of terminal it is; the tests' own must not matter.
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_stage_is_one_plain_line_off_a_terminal():
    told = io.StringIO()
    line = Terminal(told).stage("sft.western", 3, 12)
    for step in range(1, 50):
        line.update(step, 50, {"loss": 1.0})
    line.close("loss 1.0")
    assert re.fullmatch(r"\[ 3/12\] sft\.western  \d+\.\d s  loss 1\.0\n", told.getvalue())


def test_a_long_stage_speaks_up_now_and_then(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    told = io.StringIO()
    line = Terminal(told).stage("base", 1, 9)
    for step in range(1, 41):
        clock[0] += 1.0
        line.update(step, 40, {"loss": 2.0 / step, "tokens/s": 12345.6}, note="new")
    line.close()
    lines = told.getvalue().splitlines()
    # A second a step since the first.
    assert lines[0] == "[1/9] base: new 16/40 loss 0.125 tokens/s 1.235e+04, 24 s left"
    assert [row.split()[3] for row in lines[:2]] == ["16/40", "32/40"]
    assert lines[2:] == ["[1/9] base  40.0 s"]
    assert "\x1b" not in told.getvalue() and "\r" not in told.getvalue()


def test_on_a_terminal_there_is_a_bar_that_leaves_one_line():
    screen = Screen()
    line = Terminal(screen).stage("base", 1, 9)
    for step in range(1, 41):
        line.update(step, 40, {"loss": 0.5})
    line.close("done")
    text = screen.getvalue()
    assert "40/40 loss 0.5" in text and "━" in text and "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r"\[1/9\] base  \d+\.\d s  done\n$", plain)


def test_nothing_that_is_said_is_taken_for_markup():
    told = io.StringIO()
    terminal = Terminal(told)
    terminal.say("[red]x[/red] [/nothing] :smile: " + "long " * 60)
    line = terminal.stage("[bold]name", 1, 1)
    line.close("[/b]")
    first, second = told.getvalue().splitlines()
    assert first.startswith("[red]x[/red] [/nothing] :smile: long ") and first.count("long") == 60
    assert second.startswith("[1/1] [bold]name") and second.endswith("[/b]")
    told.seek(0)
    terminal.table("of [red]x[/red]", ("model", "a"), [("[/b] m", "1.0 [0.5, 1.5]")])
    text = told.getvalue()
    assert "of [red]x[/red]" in text and "[/b] m" in text and "1.0 [0.5, 1.5]" in text


def test_a_table_has_every_cell():
    told = io.StringIO()
    Terminal(told).table("title", ("model", "share"), [("one", "1.0%"), ("three", "33.3%")])
    rows = [[c.strip() for c in row.strip("│").split("│")] for row in told.getvalue().splitlines()]
    assert ["one", "1.0%"] in rows and ["three", "33.3%"] in rows
    assert told.getvalue().splitlines()[0].strip() == "title"
