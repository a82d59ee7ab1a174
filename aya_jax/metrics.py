"""Training curves: a JSON Lines file in the stage's folder, and TensorBoard events beside it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO

from tensorboardX import SummaryWriter

HISTORY = "metrics.jsonl"


class Sink(Protocol):
    """Where else curves are shown."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep the figures of a step."""

    def close(self, whole: bool) -> None:
        """Nothing more comes; `whole` unless the training was broken off."""


class MetricWriter:
    """Appends the figures of a step to `directory/metrics.jsonl`, and to other places if asked.

    What a killed attempt wrote of the first step written here, and of later ones, is dropped first, so
    that the file ends up as that of an unbroken run.

    Args:
      directory: of the stage.
      events: the folder of the TensorBoard events, none if absent.
      sink: where else the figures go, if anywhere.
    """

    def __init__(
        self, directory: Path, *, events: Path | None = None, sink: Sink | None = None
    ) -> None:
        self._path = directory / HISTORY
        self._file: TextIO | None = None
        self._events = SummaryWriter(str(events)) if events else None
        self._sink = sink

    def _begun(self, step: int) -> TextIO:
        kept = [row for row in read_rows(self._path) if row["step"] < step]
        partial = self._path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, self._path)
        return self._path.open("a")

    def write(
        self, step: int, figures: Mapping[str, float], *, timing: Mapping[str, float] | None = None
    ) -> None:
        """Keep the figures of one step; `timing`, which differs from run to run, not in the file."""
        if self._file is None:
            self._file = self._begun(step)
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        shown = {**figures, **(timing or {})}
        if self._events:
            for name, value in shown.items():
                self._events.add_scalar(name, value, step)
        if self._sink:
            self._sink.write(step, shown)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()
        if self._events:
            self._events.close()
        if self._sink:
            self._sink.close(whole=error is None)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Return the rows of a history file; a last line cut off by a kill is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def read_history(directory: Path) -> dict[str, list[list[float]]]:
    """Return `{metric: [[step, value], ...]}` of a stage's folder, {} where nothing was trained."""
    history: dict[str, list[list[float]]] = {}
    for row in read_rows(directory / HISTORY):
        for name, value in row.items():
            if name != "step":
                history.setdefault(name, []).append([row["step"], value])
    return history
