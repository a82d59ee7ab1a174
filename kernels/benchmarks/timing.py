"""How programs are timed: compiled apart, all in one run, in alternating order, by their medians."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

# A sample lasts at least so long, so that starting a program is a small part of it.
SAMPLE_SECONDS = 0.02


class Program(NamedTuple):
    """Something to call again and again; `wait` takes what it returned and waits until that is there.

    `temporaries` is the memory, in bytes, that it needs beyond arguments and results, if that is known.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready
    temporaries: int | None = None


def compiled(function: Callable[..., Any], *args: Any, **named: Any) -> Program:
    """Return a jax function of these arguments, compiled."""
    program = jax.jit(function).lower(*args, **named).compile()
    memory = program.memory_analysis()
    return Program(
        lambda: program(*args, **named), temporaries=memory and memory.temp_size_in_bytes
    )


def seconds(program: Program, calls: int) -> float:
    """Return the seconds of so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        out = program.run()
    program.wait(out)
    return time.perf_counter() - start


def medians(programs: Mapping[str, Program], repeats: int) -> dict[str, float]:
    """Return the median seconds of a call of each; every other round goes through them backwards."""
    calls = {}
    for name, program in programs.items():
        seconds(program, 1)
        calls[name] = max(1, int(SAMPLE_SECONDS / seconds(program, 1)))
    samples: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(repeats):
        for name in list(programs)[:: -1 if number % 2 else 1]:
            samples[name].append(seconds(programs[name], calls[name]) / calls[name])
    return {name: statistics.median(times) for name, times in samples.items()}
