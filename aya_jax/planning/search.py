"""Which mesh, micro-batches and rematerialisation to take: guessed by arithmetic, then compiled to be sure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aya_jax.models.config import DecoderConfig
from aya_jax.planning.figures import FILL, Figures, examine
from aya_jax.planning.guesses import (
    sampling_bytes,
    sampling_seconds,
    training_bytes,
    training_seconds,
)
from aya_jax.planning.programs import Sampling, Training
from aya_jax.planning.topology import Topology
from aya_jax.sharding.mesh import Rules, candidate_meshes
from aya_jax.sharding.place import Place

# From what costs least time to what keeps least.
REMATS = ("none", "products", "attention", "full")


@dataclass(frozen=True)
class Candidate:
    """A way to run a program, with what arithmetic alone says of it.

    Attributes:
      place, work: the mesh and the program.
      bytes: that one device holds, guessed.
      seconds: that one run takes at the least, guessed.
    """

    place: Place
    work: Training | Sampling
    bytes: int
    seconds: float

    @property
    def settings(self) -> dict[str, Any]:
        """The bindings that ask for it."""
        name = "device_mesh" if isinstance(self.work, Training) else "inference_mesh"
        mesh = {f"{name}.{axis}": size for axis, size in self.place.mesh.shape.items()}
        if not isinstance(self.work, Training):
            return mesh
        how = {"train.accumulate": self.work.accumulate, "activations.remat": self.work.remat}
        return mesh | how


def _kept_by(work: Training, remat: str) -> Training:
    objective: Any = work.objective
    return replace(work, objective=replace(objective, remat=remat))


def candidates(
    topology: Topology, devices: np.ndarray, work: Training | Sampling, rules: Rules
) -> list[Candidate]:
    """Return every way that divides and is guessed to fit, the fastest first.

    The batch stays as it is: how it is split into micro-batches changes no result.

    Args:
      topology, devices: the chips.
      work: the program, with any micro-batches and policy.
      rules: from logical axes to mesh axes.
    """
    found: list[Candidate] = []
    sampled = isinstance(work, Sampling)
    for mesh in candidate_meshes(devices, _limits(work), whole=sampled):
        place = Place(mesh, rules)
        if isinstance(work, Sampling):
            # What is decoded is one token long.
            if math.prod(mesh.shape[axis] for axis in place.axes("length")) == 1:
                seconds = sampling_seconds(topology, place, work)
                found.append(Candidate(place, work, sampling_bytes(place, work), seconds))
            continue
        for step in _steps(work, math.prod(mesh.shape[axis] for axis in place.axes("batch"))):
            size, seconds = training_bytes(place, step), training_seconds(topology, place, step)
            found.append(Candidate(place, step, size, seconds))
    held = FILL * topology.chip.device_hbm_bytes
    fitting = [candidate for candidate in found if candidate.bytes <= held]
    # Of equally fast ones, the one that holds least.
    return sorted(fitting, key=lambda each: (float(f"{each.seconds:.2g}"), each.bytes))


def _steps(work: Training, parts: int) -> Iterator[Training]:
    """Yield a step with all micro-batches that divide over so many parts, under all policies."""
    for accumulate in range(1, work.rows + 1):
        if not work.rows % (accumulate * parts):
            for remat in REMATS:
                yield replace(_kept_by(work, remat), accumulate=accumulate)


def _limits(work: Training | Sampling) -> dict[str, int]:
    """Return by how much each logical axis can be divided."""
    config = work.config
    if isinstance(config, DecoderConfig):
        heads = config.num_key_value_heads
        return {"kv": heads, "embed": config.hidden_size, "experts": config.num_local_experts or 1}
    return {"kv": config.num_heads, "embed": config.d_model, "experts": 1}


def best(
    topology: Topology, found: Sequence[Candidate], *, tries: int = 3, quick: bool = True
) -> tuple[Candidate, Figures] | None:
    """Compile candidates in turn; return the first that fits and its figures, or None.

    After one that does not fit only those that are guessed to hold less are tried.
    """
    least = math.inf
    for candidate in found:
        if candidate.bytes >= least or not tries:
            continue
        tries -= 1
        figures = examine(topology, candidate.place, candidate.work, quick=quick)
        if figures.fits:
            return candidate, figures
        # What the guess missed by is likely missed of the next one too.
        least = candidate.bytes * FILL * figures.hbm_bytes / figures.compiled.memory.peak
    return None
