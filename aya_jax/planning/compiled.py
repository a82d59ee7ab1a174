"""A program compiled for chips that are not here: the memory it takes, or by how much it does not fit."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

import aya_kernels
from aya_jax.errors import AyaError
from aya_jax.planning.gpus import compute_capability
from aya_jax.planning.hlo import Module, array_bytes
from aya_jax.planning.topology import Topology
from aya_jax.sharding.chips import Chip

# The compiler tries less hard to make a program fast, and is three times as quick; see docs/planning.md for
# what that changes.
QUICK = {"exec_time_optimization_effort": -1.0}
# libtpu 0.0.42 aborts, and the process with it, where it leaves an all-reduce to the SparseCores of a tpu7x that is not here.
TPU7X = {"xla_tpu_enable_sparse_core_collective_offload_all_reduce": False}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Memory:
    """What one device holds while a program runs, in bytes.

    Attributes:
      arguments: what it is given, such as parameters and moments.
      outputs: what it returns; `aliased` is how much of that takes the place of arguments.
      aliased: see `outputs`.
      temporaries: everything in between, at the moment when it is most.
      code: the program itself.
      host: what is kept in the host's memory.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int = 0
    host: int = 0

    @property
    def peak(self) -> int:
        """All of it together."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclass(frozen=True)
class Compiled:
    """A compiled program.

    Attributes:
      memory: of one device; of a program that the compiler refused, what it said that it needs.
      module: its text, None of a program that does not fit.
      largest: the largest arrays in it that are no arguments, as `(bytes, shape)`.
      seconds: that compiling took.
    """

    memory: Memory
    module: Module | None
    largest: tuple[tuple[int, str], ...]
    seconds: float


def compile_for(
    topology: Topology,
    program: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    quick: bool = True,
) -> Compiled:
    """Compile a jitted function for a topology; nothing is run, and no array is made.

    Args:
      topology: the chips.
      program: what `jax.jit` returned; its shardings are on `describe_devices(topology)`.
      arguments: `jax.ShapeDtypeStruct`s in place of arrays.
      quick: whether the compiler may spend less time on making the program fast.

    Raises:
      AyaError: the compiler fails for another reason than memory.
    """
    chip = topology.chip
    capability = compute_capability(chip) if chip.platform == "cuda" else None
    started = time.monotonic()
    with aya_kernels.target(chip.platform, topology.device_kind, capability):
        lowered = program.lower(*arguments)  # type: ignore[attr-defined]  # of a jitted function
        arguments_bytes = _held(lowered, arguments)
        try:
            made = lowered.compile(compiler_options=_options(chip, quick))
        except jax.errors.JaxRuntimeError as error:
            temporaries = refused_temporaries(str(error), arguments_bytes)
            if temporaries is None:
                reason = " ".join(str(error).split())[:300]
                raise AyaError(f"the compiler for {topology.name} failed: {reason}") from None
            memory = Memory(arguments_bytes, 0, 0, temporaries)
            return Compiled(memory, None, refused_arrays(str(error)), time.monotonic() - started)
    told = made.memory_analysis()
    memory = Memory(
        told.argument_size_in_bytes,
        told.output_size_in_bytes,
        told.alias_size_in_bytes,
        told.temp_size_in_bytes,
        told.generated_code_size_in_bytes,
        told.host_argument_size_in_bytes + told.host_temp_size_in_bytes,
    )
    module = Module.parse(made.as_text())
    return Compiled(memory, module, largest_arrays(module), time.monotonic() - started)


def _options(chip: Chip, quick: bool) -> dict[str, Any] | None:
    """Return what the compiler of a chip is told."""
    told = {
        **(QUICK if quick and chip.platform == "tpu" else {}),
        **(TPU7X if chip.name == "tpu7x" else {}),
    }
    return told or None


def _held(lowered: Any, arguments: tuple[Any, ...]) -> int:
    """Return the bytes of one device's share of the arguments."""
    shapes = jax.tree.leaves(arguments)
    given = jax.tree.leaves(lowered.args_info)
    shardings = [
        getattr(info, "sharding", None) or getattr(shape, "sharding", None)
        for info, shape in zip(given, shapes, strict=True)
    ]
    total = 0
    for shape, sharding in zip(shapes, shardings, strict=True):
        held = shape.shape if sharding is None else sharding.shard_shape(shape.shape)
        size = shape.dtype.itemsize
        for side in held:
            size *= side
        total += size
    return total


def refused_temporaries(message: str, arguments: int) -> int | None:
    """Return how many bytes of temporaries a program needs that was refused for them, or None.

    Args:
      message: of the compiler. libtpu says either `memory required for HLO temporaries (68.77G) exceeds`, or
        of everything together `Used 20.33G of 15.75G hbm`.
      arguments: bytes of the program's arguments.
    """
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", message)
    if found:
        return _bytes(*found.groups())
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    return max(_bytes(*found.groups()) - arguments, 0) if found else None


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])


def refused_arrays(message: str) -> tuple[tuple[int, str], ...]:
    """Return the largest allocations that libtpu names when a program does not fit, as `(bytes, shape)`."""
    found = re.findall(r"Size: ([\d.]+)([KMGT]?)\s.*?Shape: (\S+?\[[\d,]*\])", message, re.DOTALL)
    arrays = {shape: _bytes(size, unit) for size, unit, shape in found}
    return tuple(sorted(((size, shape) for shape, size in arrays.items()), reverse=True)[:5])


def largest_arrays(module: Module, count: int = 5) -> tuple[tuple[int, str], ...]:
    """Return the largest arrays in HBM that a program makes, as `(bytes, shape)`, each shape once."""
    made: dict[str, int] = {}
    passing = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional"}
    fused = {
        name
        for body in module.computations.values()
        for i in body
        if i.opcode == "fusion"
        for _, name in i.called
    }
    for computation, instruction, _ in module.runs():
        if computation in fused or instruction.opcode in passing:
            continue
        for array in re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", instruction.shape):
            name = array.split("{")[0]
            # Memory space 1 is on the chip itself; what is no numbers (`token[]`) takes no memory.
            if "S(1)" not in array and (sizes := array_bytes(name)):
                made[name] = sizes[0]
    return tuple(sorted(((size, name) for name, size in made.items()), reverse=True)[:count])
