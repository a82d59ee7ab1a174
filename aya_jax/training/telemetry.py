"""How fast a training runs and what it holds: figures for TensorBoard, and never for the curve itself.

They differ from run to run, and `metrics.jsonl` is the same in every run.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import gin
import jax

from aya_jax.errors import AyaError
from aya_jax.sharding.chips import chip_of
from aya_jax.training.compilations import Compilations
from aya_jax.training.trace import Trace
from aya_jax.training.work import RowWork

GIB = 1 << 30
# Of so many log intervals the median tells how long a step usually takes.
USUAL = 3


class Telemetry(AbstractContextManager["Telemetry"]):
    """Watches one training from outside: its clock, its memory, its compilations; traces on request.

    Args:
      work: of a row of the data.
      directory: of the work, where the file `trace` asks for a profiler trace; none: no file does.
      events: the folder of the TensorBoard events, where traces go; none: there are no traces.
      trace_steps: how many steps a trace is long.
      slow_factor: a trace is written once when the steps between two logs took so many times as long
        as the median before; None: never.
    """

    def __init__(
        self,
        *,
        work: RowWork,
        directory: Path | None = None,
        events: Path | None = None,
        trace_steps: int = 4,
        slow_factor: float | None = None,
    ) -> None:
        self._work = work
        self._slow_factor = slow_factor
        self._compilations = Compilations()
        self._trace = Trace(directory, events, steps=trace_steps) if events else None
        self._open = ExitStack()
        self._usual: list[float] = []
        self._last: int | None = None
        self._since = self._waited = 0.0

    def watched(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """Return a jitted function that warns, once, with what changed when it is compiled again."""
        return self._compilations.watched(program)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def step(self, step: int, result: Any = None) -> None:
        """Tell of a step that was dispatched.

        Args:
          step: its number.
          result: arrays that it returned and that are not donated, such as its metrics. The first
            step's are waited for, so that neither its compilation nor itself is in any figure.
        """
        if self._last is None:
            jax.block_until_ready(result)
            self._restart(step)
        if self._trace:
            self._trace.step(step, result)

    def figures(self, step: int, *, rows: int) -> dict[str, float]:
        """Return the figures of the steps since the last call.

        Args:
          step: the last that is done, just now; later ones may have been dispatched.
          rows: in a batch, of all processes.

        Returns:
          `time/step`, the mean in seconds, with everything that the loop did between; `time/data_wait_share`,
          of that the share in `waiting`; `tokens_per_second`, real tokens of all processes; `mfu`, the
          model FLOPs a second over what the chips can do in bfloat16 at best, where that is known;
          `memory/in_use` and `memory/peak` in GiB, of the fullest chip of this process, where the
          device tells. None of those of time if no step but the first was done.
        """
        figures = memory()
        if self._last is not None and step > self._last:
            steps = step - self._last
            seconds = (time.perf_counter() - self._since) / steps
            figures["time/step"] = seconds
            figures["time/data_wait_share"] = self._waited / steps / seconds
            figures["tokens_per_second"] = self._work.tokens * rows / seconds
            if best := peak_flops():
                figures["mfu"] = self._work.flops * rows / seconds / best
            self._look_for_slowness(seconds)
            self._restart(step)
        return figures

    def _restart(self, step: int) -> None:
        self._last, self._waited, self._since = step, 0.0, time.perf_counter()

    def _look_for_slowness(self, seconds: float) -> None:
        known = len(self._usual) >= USUAL
        if self._trace and self._slow_factor and known and not self._trace.written:
            usual = statistics.median(self._usual)
            if seconds > self._slow_factor * usual:
                self._trace.ask(f"steps take {seconds:.3g} s, usual are {usual:.3g} s")
        self._usual.append(seconds)

    def __enter__(self) -> "Telemetry":
        self._open.enter_context(self._compilations)
        if self._trace:
            self._open.enter_context(self._trace)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()


def peak_flops() -> float | None:
    """Return what all devices can do a second in bfloat16, None where that is not known (as of CPUs)."""
    chip = chip_of(jax.devices()[0].device_kind)
    return chip.device_flops * jax.device_count() if chip else None


def memory() -> dict[str, float]:
    """Return `memory/in_use` and `memory/peak`, in GiB, of this process's fullest chip; {} on a CPU."""
    told = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"memory/in_use": "bytes_in_use", "memory/peak": "peak_bytes_in_use"}
    return {
        name: max(stats[field] for stats in told) / GIB
        for name, field in names.items()
        if told and all(field in stats for stats in told)
    }


@gin.configurable(denylist=["work", "directory", "events"])
def telemetry(
    work: RowWork,
    *,
    directory: Path | None = None,
    events: Path | None = None,
    trace_steps: int = 4,
    slow_factor: float | None = None,
) -> Telemetry:
    """Return what watches a training, with the settings of its traces.

    Args:
      work, directory, events, trace_steps, slow_factor: see `Telemetry`.

    Raises:
      AyaError: `trace_steps` is below 1, or `slow_factor` not above 1.
    """
    if trace_steps < 1:
        raise AyaError(f"telemetry.trace_steps is {trace_steps}; it must be at least 1")
    if slow_factor is not None and slow_factor <= 1:
        raise AyaError(f"telemetry.slow_factor is {slow_factor}; it must be above 1, or None")
    return Telemetry(
        work=work,
        directory=directory,
        events=events,
        trace_steps=trace_steps,
        slow_factor=slow_factor,
    )
