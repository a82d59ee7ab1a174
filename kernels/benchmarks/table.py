"""One question's programs, those that cannot be had, and the rows of a table that answer it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks.chips import known
from benchmarks.timing import Program, medians


class Work(NamedTuple):
    """What a call has to do at least, whoever does it: operations of its products, and bytes read."""

    operations: float = 0.0
    bytes: float = 0.0


class Question(NamedTuple):
    """What is compared: a name, and makers of programs by theirs, ours first.

    A maker returns a `Program`, or raises if it cannot be had; the row then says why.
    """

    name: str
    work: Work
    makers: dict[str, Callable[[], Program]]


HEAD = """\
| what | program | ms | times as fast as | roofline | temporaries, MiB |
|---|---|---|---|---|---|"""


def rows(question: Question, baselines: list[str], repeats: int) -> list[str]:
    """Time a question's programs together and return a row each, ratios to the first baseline there."""
    programs, missing = {}, {}
    for name, make in question.makers.items():
        try:
            programs[name] = make()
            programs[name].wait(programs[name].run())
        except Exception as error:  # whatever another library raises where it cannot
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            missing[name] = reason.replace("|", "/")[:160]
            programs.pop(name, None)
    times = medians(programs, repeats)
    baseline = next((name for name in baselines if name in times), None)
    lines = [_row(question, name, times, baseline, programs[name].temporaries) for name in programs]
    return lines + [
        f"| {question.name} | {name} | missing | {reason} | | |" for name, reason in missing.items()
    ]


def _row(
    question: Question, name: str, times: dict[str, float], baseline: str | None, extra: int | None
) -> str:
    ratio = "" if baseline is None else f"{times[baseline] / times[name]:.2f} x {baseline}"
    memory = "" if extra is None else f"{extra / (1 << 20):,.1f}"
    cells = [question.name, name, f"{1e3 * times[name]:.3f}", ratio]
    return f"| {' | '.join([*cells, roofline(question.work, times[name]), memory])} |"


def roofline(work: Work, seconds: float) -> str:
    """Return what a program reached, and its share of what the chip can at best, if that is known."""
    chip: Any = known(jax.devices()[0].device_kind)
    if work.operations:
        rate, unit, best = work.operations / seconds / 1e12, "Tflop/s", chip and chip.operations
    else:
        rate, unit, best = work.bytes / seconds / 1e9, "GB/s", chip and chip.bandwidth
    share = "" if best is None else f", {(work.operations or work.bytes) / seconds / best:.0%}"
    return f"{rate:.3g} {unit}{share}"
