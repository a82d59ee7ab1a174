"""What a program holds and takes, roughly, by arithmetic alone: to choose what to compile by, and for nothing else."""

import math
from collections.abc import Mapping
from functools import lru_cache

import jax
import numpy as np

from aya_jax.models.architecture import ModelConfig, abstract_params
from aya_jax.models.config import DecoderConfig
from aya_jax.planning.collectives import Collective
from aya_jax.planning.programs import RECOMPUTED, Sampling, Training, least_hbm_bytes
from aya_jax.planning.roofline import bound
from aya_jax.planning.topology import Topology
from aya_jax.sharding.place import Place
from aya_jax.sharding.programs import filled_up
from aya_jax.training.optimizer import Optimizer


@lru_cache(maxsize=32)
def _parameters(config: ModelConfig, reward_head: bool = False) -> int:
    shapes = abstract_params(config, reward_head=reward_head)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@lru_cache(maxsize=32)
def _moment_bytes(config: ModelConfig, reward_head: bool, optimizer: Optimizer) -> int:
    shapes = abstract_params(config, reward_head=reward_head)
    moments = jax.tree.leaves(jax.eval_shape(optimizer.transform().init, shapes))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in moments)


def _parts(place: Place, *names: str) -> int:
    axes = dict.fromkeys(axis for name in names for axis in place.axes(name))
    return math.prod(place.mesh.shape[axis] for axis in axes)


def _sizes(config: ModelConfig) -> tuple[int, int, int, int]:
    """Return the hidden size, that of the feed-forward layer, the layers and the vocabulary."""
    c = config
    if isinstance(c, DecoderConfig):
        return c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.vocab_size
    return c.d_model, c.d_ff, c.num_layers + c.num_decoder_layers, c.vocab_size


def training_bytes(place: Place, work: Training) -> int:
    """Return what one device holds: state, gradients, what layers keep, what one layer or the head uses."""
    config, item = work.config, work.dtype.itemsize
    head = work.objective.reward_head
    count = _parameters(config, head)
    held = 4 * count + _moment_bytes(config, head, work.optimizer)
    whole, split = _parts(place, "embed", "heads", "vocab"), _parts(place, "heads", "vocab")
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
    logits = 2 * vocabulary * d * item / split + 4 * tokens * 4096
    gradients = 4 * count / whole * (2 if work.accumulate > 1 else 1)
    return int(held / whole + gradients + layers * tokens * item * kept + max(working, logits))


def training_seconds(topology: Topology, place: Place, work: Training) -> float:
    """Return the bound of a step, its exchanges counted by hand (as in arXiv 1909.08053 and 1910.02054).

    For each micro-batch weights are gathered at every pass and their gradients scattered; of tensor
    parallelism each layer adds up its outputs forward and its inputs' gradients backward.
    """
    item, (d, _, layers, _) = work.dtype.itemsize, _sizes(work.config)
    weights = _parameters(work.config) * item / _parts(place, "heads", "vocab")
    both = work.rows * (2 if work.pairs else 1)
    tokens = both * (work.length + work.inputs) / _parts(place, "batch", "length")
    outputs = layers * tokens * d * item * (2 + RECOMPUTED[work.remat][0])
    sent = {
        "embed": ("all-gather", weights * work.weight_passes()),
        "batch": ("reduce-scatter", weights * work.accumulate),
        "heads": ("all-reduce", 2 * outputs),
        "length": ("collective-permute", outputs),
    }
    held = training_bytes(place, work) // 2
    return _seconds(topology, place, work, sent, held)


def sampling_bytes(place: Place, work: Sampling) -> int:
    """Return what one device holds: weights, the cache of its rows twice, two layers that are gathered, the head."""
    config, item = work.config, np.dtype(work.dtype).itemsize
    d, width, layers, vocabulary = _sizes(config)
    whole, split = _parts(place, "embed", "heads", "vocab"), _parts(place, "heads", "vocab")
    rows = filled_up(work.rows, place) / _parts(place, "batch")
    keys = d
    if isinstance(config, DecoderConfig):
        keys = config.num_key_value_heads * config.head_dim
    cache = layers * rows * (work.prompt + work.new) * 2 * keys * item / split
    count = _parameters(config)
    gathered = whole > split
    layer = 2 * (count - vocabulary * d) / layers / split * item if gathered else 0
    head = vocabulary * d * item / split if gathered else 0
    prompt = rows * work.prompt * item * (4 * d + 3 * width / split)
    return int(count * item / whole + 2 * cache + layer + head + prompt)


def sampling_seconds(topology: Topology, place: Place, work: Sampling) -> float:
    """Return the bound of a batch: weights that are split by `embed` are gathered for each new token."""
    item, (d, _, layers, _) = np.dtype(work.dtype).itemsize, _sizes(work.config)
    weights = _parameters(work.config) * item / _parts(place, "heads", "vocab")
    tokens = filled_up(work.rows, place) * (work.prompt + work.new) / _parts(place, "batch")
    sent = {
        "embed": ("all-gather", weights * work.weight_passes()),
        "heads": ("all-reduce", 2 * layers * tokens * d * item),
    }
    return _seconds(topology, place, work, sent, sampling_bytes(place, work) // 2)


def _seconds(
    topology: Topology,
    place: Place,
    work: Training | Sampling,
    sent: Mapping[str, tuple[str, float]],
    held: int,
) -> float:
    found = [_along(place, name, kind, size) for name, (kind, size) in sent.items()]
    return bound(
        topology,
        flops=work.executed_flops(place),
        hbm_bytes=least_hbm_bytes(work, place, held, held),
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
    share = 1.0 if kind == "collective-permute" else (n - 1) / n * (1 + (kind == "all-reduce"))
    return Collective(kind, axes, n, group, 1, int(size), size * share)
