"""The figures of one program on one mesh: memory, exchanges, operations, bounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from aya_jax.planning.collectives import Collective, find_collectives
from aya_jax.planning.compiled import Compiled, compile_for
from aya_jax.planning.programs import Work, describe, least_hbm_bytes
from aya_jax.planning.roofline import Bound, bound, utilisation
from aya_jax.planning.topology import Topology
from aya_jax.sharding.place import Place

# What of a chip's memory a program may take: the runtime and fragmentation want some too.
FILL = 0.9


@dataclass(frozen=True)
class Figures:
    """What was found of one program.

    Attributes:
      topology, place, work: what was compiled for what.
      compiled: memory and text.
      collectives: what devices exchange in one run; none of a program that does not fit.
      bound: of the time of one run; None of a program that does not fit.
    """

    topology: Topology
    place: Place
    work: Work
    compiled: Compiled
    collectives: tuple[Collective, ...]
    bound: Bound | None

    @property
    def hbm_bytes(self) -> int:
        """The memory of one device."""
        return self.topology.chip.device_hbm_bytes

    @property
    def fits(self) -> bool:
        """Whether the program leaves `1 - FILL` of the memory free."""
        return self.bound is not None and self.compiled.memory.peak <= FILL * self.hbm_bytes

    @property
    def over_bytes(self) -> int:
        """By how much it does not fit, 0 where it does."""
        return max(self.compiled.memory.peak - int(FILL * self.hbm_bytes), 0)

    @cached_property
    def tokens_per_second(self) -> float | None:
        """Tokens a second of all chips together, at the most."""
        if self.bound is None:
            return None
        return self.work.tokens(self.place) / self.bound.seconds

    def to_json(self) -> dict[str, Any]:
        """Return the figures as the plan's JSON has them, see docs/planning.md."""
        memory, mesh = self.compiled.memory, self.place.mesh
        flops = self.work.model_flops(self.place)
        told: dict[str, Any] = {
            "program": describe(self.work),
            "mesh": dict(mesh.shape),
            "fits": self.fits,
            "hbm_bytes": self.hbm_bytes,
            "peak_bytes": memory.peak,
            "over_bytes": self.over_bytes,
            "argument_bytes": memory.arguments,
            "output_bytes": memory.outputs - memory.aliased,
            "temp_bytes": memory.temporaries,
            "code_bytes": memory.code,
            "host_bytes": memory.host,
            "largest_arrays": [
                {"bytes": size, "shape": shape} for size, shape in self.compiled.largest
            ],
            "collectives": summed(self.collectives),
            "tokens": self.work.tokens(self.place),
            "model_flops": flops,
            "executed_flops": self.work.executed_flops(self.place),
            "step_seconds_bound": None,
            "tokens_per_second_bound": None,
            "mfu_bound": None,
        }
        if self.bound is not None:
            told |= {
                "step_seconds_bound": self.bound.seconds,
                "bound_by": self.bound.limit,
                "compute_seconds": self.bound.compute,
                "hbm_seconds": self.bound.hbm,
                "interconnect_seconds": self.bound.interconnect,
                "tokens_per_second_bound": self.tokens_per_second,
                "mfu_bound": utilisation(self.topology, flops, self.bound.seconds),
            }
        return told


def summed(collectives: Sequence[Collective]) -> list[dict[str, Any]]:
    """Return exchanges added up by kind and axes, the most bytes first."""
    sums: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for each in collectives:
        found = sums.setdefault(
            (each.kind, each.axes),
            {"kind": each.kind, "axes": list(each.axes), "count": 0, "bytes": 0, "sent_bytes": 0.0},
        )
        found["count"] += each.count
        found["bytes"] += each.bytes
        found["sent_bytes"] += each.sent_bytes
    for found in sums.values():
        found["sent_bytes"] = round(found["sent_bytes"])
    return sorted(sums.values(), key=lambda found: -found["sent_bytes"])


def examine(topology: Topology, place: Place, work: Work, *, quick: bool = True) -> Figures:
    """Compile a program and return its figures.

    Raises:
      AyaError: something does not divide over the mesh, or the compiler fails for another reason than
        memory.
    """
    program, arguments = work.build(place)
    compiled = compile_for(topology, program, arguments, quick=quick)
    if compiled.module is None:
        return Figures(topology, place, work, compiled, (), None)
    found = find_collectives(compiled.module, place.mesh, unknown=work.turns)
    memory = compiled.memory
    roof = bound(
        topology,
        flops=work.executed_flops(place),
        hbm_bytes=least_hbm_bytes(work, place, memory.arguments, memory.outputs),
        collectives=found,
        devices=place.mesh.devices.reshape(-1),
    )
    return Figures(topology, place, work, compiled, tuple(found), roof)
