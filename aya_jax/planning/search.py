"""Which mesh, micro-batches and rematerialisation to take: guessed by arithmetic, then compiled to be sure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from aya_jax.models.architecture import abstract_params
from aya_jax.models.config import DecoderConfig
from aya_jax.planning.collectives import Collective
from aya_jax.planning.figures import FILL, Figures, examine
from aya_jax.planning.programs import Training, least_hbm_bytes
from aya_jax.planning.roofline import bound
from aya_jax.planning.topology import Topology
from aya_jax.sharding.mesh import Rules, candidate_meshes
from aya_jax.sharding.place import Place

# From what costs least time to what keeps least.
REMATS = ("none", "products", "attention", "full")


@dataclass(frozen=True)
class Candidate:
    """A way to run a training step, with what arithmetic alone says of it.

    Attributes:
      place, work: the mesh and the step.
      bytes: that one device holds, guessed.
      seconds: that one step takes at the least, guessed.
    """

    place: Place
    work: Training
    bytes: int
    seconds: float

    @property
    def settings(self) -> dict[str, Any]:
        """The bindings that ask for it."""
        mesh = {f"device_mesh.{axis}": size for axis, size in self.place.mesh.shape.items()}
        return {
            **mesh,
            "train.accumulate": self.work.accumulate,
            "activations.remat": self.work.remat,
        }

    def like(self, work: Training) -> Training:
        """Return another step with this one's micro-batches and rematerialisation, as far as they divide."""
        accumulate = math.gcd(self.work.accumulate, work.rows)
        objective = replace(work.objective, remat=self.work.remat)  # type: ignore[type-var]
        return replace(work, objective=objective, accumulate=accumulate)


def candidates(
    topology: Topology, devices: np.ndarray, work: Training, rules: Rules
) -> list[Candidate]:
    """Return every way that divides and is guessed to fit, the fastest first.

    The batch stays as it is: how it is split into micro-batches changes no result.

    Args:
      topology, devices: the chips.
      work: the step, in any mesh, micro-batches and policy.
      rules: from logical axes to mesh axes.
    """
    found = []
    for mesh in candidate_meshes(devices, _limits(work)):
        place = Place(mesh, rules)
        parts = math.prod(mesh.shape[axis] for axis in place.axes("batch"))
        for accumulate in _divisors(work.rows):
            if work.rows // accumulate % parts:
                continue
            for remat in REMATS:
                objective = replace(work.objective, remat=remat)  # type: ignore[type-var]  # a dataclass
                step = replace(work, objective=objective, accumulate=accumulate)
                size = guessed_bytes(place, step)
                if size <= FILL * topology.chip.device_hbm_bytes:
                    seconds = guessed_seconds(topology, place, step)
                    found.append(Candidate(place, step, size, seconds))
    # Of equally fast ones, the one that holds least.
    return sorted(found, key=lambda each: (round(each.seconds, 4), each.bytes))


def _divisors(number: int) -> Iterator[int]:
    return (n for n in range(1, number + 1) if not number % n)


def _limits(work: Training) -> dict[str, int]:
    """Return by how much each logical axis can be divided."""
    config = work.config
    if isinstance(config, DecoderConfig):
        heads = config.num_key_value_heads
        return {"kv": heads, "embed": config.hidden_size, "experts": config.num_local_experts or 1}
    return {"kv": config.num_heads, "embed": config.d_model, "experts": 1}


def best(
    topology: Topology,
    found: Sequence[Candidate],
    *,
    tries: int = 3,
    quick: bool = True,
) -> Figures | None:
    """Compile candidates in turn; return the figures of the first that fits, or None.

    After one that does not fit only those that are guessed to hold less are tried.
    """
    least = math.inf
    for candidate in found:
        if candidate.bytes >= least or not tries:
            continue
        tries -= 1
        figures = examine(topology, candidate.place, candidate.work, quick=quick)
        if figures.fits:
            return figures
        # What the guess missed by is likely missed of the next one too.
        least = candidate.bytes * FILL * figures.hbm_bytes / figures.compiled.memory.peak
    return None


def _parts(place: Place, *names: str) -> int:
    axes = dict.fromkeys(axis for name in names for axis in place.axes(name))
    return math.prod(place.mesh.shape[axis] for axis in axes)


def guessed_bytes(place: Place, work: Training) -> int:
    """Return roughly what one device holds: state and gradients, what layers keep, what one layer and the head use.

    It is a guess to choose by; figures come from the compiler.
    """
    config = work.config
    params = abstract_params(config, reward_head=work.objective.reward_head)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    moments = jax.eval_shape(work.optimizer.transform().init, params)
    held = 4 * count + sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(moments)
    )
    whole, split = _parts(place, "embed", "heads", "vocab"), _parts(place, "heads", "vocab")
    item = work.dtype.itemsize
    both = work.rows * (2 if work.pairs else 1) // work.accumulate
    tokens = both * (work.length + work.inputs) / _parts(place, "batch", "length")
    d, width, layers, vocabulary = _sizes(config)
    kept = {
        "none": 6 * d + (3 * width + 6 * d) / split,
        "products": 3 * d + (2 * width + 3 * d) / split,
        "attention": d + d / split,
        "full": d,
        "offload": 0,
    }[work.remat]
    layer = (count - vocabulary * d) / layers / split
    # Two layers' weights are gathered at a time, and the gradients of one; in float32 what one layer makes.
    working = 3 * layer * item + tokens * 4 * (4 * d + 3 * width / split)
    # The embedding, whole but for `vocab`, and its gradient; a block of logits in float32.
    head = 2 * vocabulary * d * item / split + 4 * tokens * 4096
    gradients = 4 * count / whole * (2 if work.accumulate > 1 else 1)
    return int(held / whole + gradients + layers * tokens * item * kept + max(working, head))


def _sizes(config: Any) -> tuple[int, int, int, int]:
    if isinstance(config, DecoderConfig):
        return (
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.vocab_size,
        )
    layers = config.num_layers + config.num_decoder_layers
    return config.d_model, config.d_ff, layers, config.vocab_size


def guessed_seconds(topology: Topology, place: Place, work: Training) -> float:
    """Return roughly the bound of a step, its exchanges counted by hand (as in arXiv 1909.08053, 2004.08366).

    For each micro-batch weights are gathered at every pass and their gradients scattered; of tensor
    parallelism each layer adds up its outputs forward and its inputs' gradients backward.
    """
    config = work.config
    item = work.dtype.itemsize
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))
    split = _parts(place, "heads", "vocab")
    passes = work.weight_passes()
    again = work.remat in ("full", "attention", "offload")
    d, _, layers, _ = _sizes(config)
    both = work.rows * (2 if work.pairs else 1)
    tokens = both * (work.length + work.inputs) / _parts(place, "batch", "length")
    sent = {
        "embed": ("all-gather", count * item / split * passes),
        "batch": ("reduce-scatter", count * item / split * work.accumulate),
        "heads": ("all-reduce", layers * tokens * d * item * (3 if again else 2) * 2),
        "length": ("collective-permute", layers * tokens * d * item * (3 if again else 2)),
    }
    found = [_along(place, name, kind, size) for name, (kind, size) in sent.items()]
    arguments = guessed_bytes(place, work) // 2
    return bound(
        topology,
        flops=work.executed_flops(place),
        hbm_bytes=least_hbm_bytes(work, place, arguments, arguments),
        collectives=[each for each in found if each is not None],
        devices=place.mesh.devices.reshape(-1),
    ).seconds


def _along(place: Place, name: str, kind: str, size: float) -> Collective | None:
    """Return an exchange of arrays of `size` bytes along the mesh axes of a logical axis."""
    shape: Mapping[str, int] = place.mesh.shape
    axes = tuple(axis for axis in place.axes(name) if shape[axis] > 1)
    if not axes:
        return None
    places = np.arange(place.mesh.size).reshape(tuple(shape.values()))
    index = tuple(slice(None) if axis in axes else 0 for axis in shape)
    group = tuple(places[index].reshape(-1).tolist())
    n = len(group)
    share = (
        1.0 if kind == "collective-permute" else (n - 1) / n * (2 if kind == "all-reduce" else 1)
    )
    return Collective(kind, axes, n, group, 1, int(size), size * share)
