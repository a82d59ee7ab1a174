"""Training curves: a JSON Lines file in the stage's folder, and TensorBoard events beside it."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

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
        self._events = _open_events(events) if events else None
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
        """Keep the figures of one step; `timing`, which differs from run to run, not in the file.

        Raises:
          OSError: they cannot be written.
        """
        if self._file is None:
            self._file = self._begun(step)
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        shown = {**figures, **(timing or {})}
        if self._events:
            for name, value in shown.items():
                summary = scalar(name, value)
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._events.flush()
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
        with ExitStack() as closing:
            if self._sink:
                closing.callback(self._sink.close, whole=error is None)
            if self._events:
                closing.callback(self._events.close)
            if self._file:
                closing.callback(self._file.close)


def _open_events(folder: Path) -> EventsWriter:
    """Return a new file of events; not by `SummaryWriter`, whose thread hangs all on a full disk."""
    folder.mkdir(parents=True, exist_ok=True)
    return EventsWriter(str(folder / "events"))


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
