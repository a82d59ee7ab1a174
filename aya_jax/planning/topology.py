"""Chips that are only described: their names, and the devices that programs are compiled for."""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from aya_jax.errors import AyaError, nearest
from aya_jax.planning.gpus import target_config
from aya_jax.sharding.chips import CHIPS, Chip

EXAMPLES = "v5e:8x8, v5p:4x4x8, v6e:16x16, tpu7x:4x4x4 or gpu:8xh100"
# GPUs of one machine are joined by NVLink; there are eight in all that are sold for training.
GPUS_OF_A_MACHINE = 8


@dataclass(frozen=True)
class Topology:
    """Chips that belong together: TPU slices, each a torus, or the GPUs of one or more machines.

    Attributes:
      name: as the user wrote it.
      chip: its kind.
      shape: sides of the torus; of GPUs their number.
      slices: how many such tori there are, joined by the data-centre network.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """How many chips there are."""
        return math.prod(self.shape) * self.slices

    @property
    def device_count(self) -> int:
        """How many devices jax shows of them."""
        return self.chips * self.chip.devices

    @property
    def device_kind(self) -> str:
        """What jax calls such a device."""
        return self.chip.kinds[0]

    def wraps(self, side: int) -> bool:
        """Return whether the links along a side of the torus close to a ring."""
        # Of a 3D torus only whole cubes of 4 x 4 x 4 are joined by the optical switches that close rings.
        at = self.chip.wraps_at
        whole = self.chip.dimensions == 2 or all(size % at == 0 for size in self.shape)
        return whole and self.shape[side] % at == 0


def parse_topology(text: str) -> Topology:
    """Return the topology of a name such as `v5e:8x8`, `2xv5e:8x8` (two slices) or `gpu:8xh100`.

    Raises:
      AyaError: it is no such name, or there is no slice of that shape.
    """
    found = re.fullmatch(r"gpu:(\d+)x([\w-]+)", text)
    if found:
        gpus = [name for name, chip in CHIPS.items() if chip.platform == "cuda"]
        if found[2] not in gpus:
            raise AyaError(f"--topology {text}: unknown GPU '{found[2]}'{nearest(found[2], gpus)}")
        count = int(found[1])
        if count < 1 or (count > GPUS_OF_A_MACHINE and count % GPUS_OF_A_MACHINE):
            raise AyaError(
                f"--topology {text}: give up to {GPUS_OF_A_MACHINE} GPUs, or whole machines of that many"
            )
        return Topology(text, CHIPS[found[2]], (count,))
    found = re.fullmatch(r"(?:(\d+)x)?([\w-]+):(\d+(?:x\d+)*)", text)
    if not found:
        raise AyaError(f"--topology {text}: write a chip and its shape, such as {EXAMPLES}")
    tpus = [name for name, chip in CHIPS.items() if chip.platform == "tpu"]
    if found[2] not in tpus:
        raise AyaError(f"--topology {text}: unknown TPU '{found[2]}'{nearest(found[2], tpus)}")
    chip, shape, slices = CHIPS[found[2]], tuple(map(int, found[3].split("x"))), int(found[1] or 1)
    if len(shape) != chip.dimensions:
        raise AyaError(
            f"--topology {text}: the shape of {chip.name} has {chip.dimensions} sides, such as {EXAMPLES}"
        )
    if 0 in (*shape, slices):
        raise AyaError(f"--topology {text}: no side, and no number of slices, may be 0")
    return Topology(text, chip, shape, slices)


def describe_devices(topology: Topology) -> np.ndarray:
    """Return the devices of a topology, none of which need be here, as a flat array.

    Raises:
      AyaError: the compiler for such chips is not installed, or knows no such topology.
    """
    return np.asarray(_devices(topology))


@cache
def _devices(topology: Topology) -> tuple[Any, ...]:
    if topology.chip.platform == "tpu":
        return _tpu(topology)
    return _gpu(topology)


def _tpu(topology: Topology) -> tuple[Any, ...]:
    if importlib.util.find_spec("libtpu") is None:
        raise AyaError(
            f"--topology {topology.name}: the TPU's compiler is not installed; pip install 'aya_jax[tpu]' "
            "(in an environment of its own: with it jax looks for a TPU whenever it starts)"
        )
    # No questions to a metadata server, and several processes may compile at once.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Or it warns that it does not know which host of how many this is.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        one = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=one, num_slices=topology.slices
        )
    except Exception as error:
        raise AyaError(_told(topology, error)) from None
    return tuple(described.devices)


def _gpu(topology: Topology) -> tuple[Any, ...]:
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise AyaError(
            f"--topology {topology.name}: jax's CUDA plugin is not installed; pip install 'aya_jax[cuda]'"
        )
    machines = max(topology.chips // GPUS_OF_A_MACHINE, 1)
    sides = f"1x{machines}x{topology.chips // machines}"
    try:
        described = topologies.get_topology_desc(
            topology.chip.name,
            platform="cuda",
            topology=sides,
            target_config=target_config(topology.chip),
        )
    except Exception as error:
        raise AyaError(_told(topology, error)) from None
    return tuple(described.devices)


def _told(topology: Topology, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"--topology {topology.name}: the compiler knows no such chips ({reason})"


def only_compile() -> None:
    """Keep jax from looking for accelerators: programs of a plan are compiled and never run.

    To be called before jax is used.
    """
    jax.config.update("jax_platforms", "cpu")
