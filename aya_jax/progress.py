"""What the terminal shows: a line a stage, live on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

# Off a terminal a running stage says something this often, in seconds.
PLAIN_INTERVAL = 15.0


class StageLine:
    """The line of one stage. `update` may be called at every step; it prints seldom."""

    def __init__(self, console: Console, name: str, position: str) -> None:
        self._console = console
        self._name = name
        self._head = f"{position} {name}"
        self._started = self._printed = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[figures]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(self._head, total=None, figures="")
            self._bar.start()

    def update(
        self, done: int, total: int, figures: Mapping[str, float] | None = None, note: str = ""
    ) -> None:
        """Tell that `done` of `total` steps or items are behind us, with a few figures."""
        self._first = self._first or (done, time.monotonic())
        shown = " ".join(f"{name} {value:.4g}" for name, value in (figures or {}).items())
        text = f"{note + ' ' if note else ''}{done}/{total} {shown}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, figures=text)
        elif time.monotonic() - self._printed > PLAIN_INTERVAL:
            self._printed = time.monotonic()
            self._console.print(f"{self._head}: {text}{self._left(done, total)}")

    def _left(self, done: int, total: int) -> str:
        """Return how long the rest takes at the pace since the first update of this process."""
        assert self._first is not None
        before, started = self._first
        if done <= before:
            return ""
        seconds = (time.monotonic() - started) / (done - before) * (total - done)
        return f", {seconds:.0f} s left"

    def close(self, outcome: str = "") -> None:
        """End the line with the seconds it took and what came of it."""
        if self._bar is not None:
            self._bar.stop()
        seconds = time.monotonic() - self._started
        text = f"{self._head}  {seconds:.1f} s  {outcome}".rstrip()
        self._console.print(text)


class Terminal:
    """Everything that a run prints."""

    def __init__(self, stream: TextIO | None = None) -> None:
        stream = stream or sys.stdout
        width = None if stream.isatty() else 140
        # Names and texts of users pass through here: nothing in them is taken for markup.
        self.console = Console(
            file=stream, soft_wrap=True, width=width, markup=False, emoji=False, highlight=False
        )

    def stage(self, name: str, number: int, count: int) -> StageLine:
        """Open the line of a stage."""
        return StageLine(self.console, name, f"[{number:>{len(str(count))}}/{count}]")

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; every column but the first is aligned to the right."""
        table = Table(title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
