"""A bound on the time of a program: what its operations, its memory and its exchanges take at the least.

The roofline model (Williams, Waterman and Patterson, 2009, DOI 10.1145/1498765.1498785), with the links between
chips as one more roof. Nothing here is measured: no program was run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from aya_jax.planning.collectives import Collective
from aya_jax.planning.topology import GPUS_OF_A_MACHINE, Topology


@dataclass(frozen=True)
class Bound:
    """Seconds that one run of a program takes at the least, by what takes them.

    They count as fully overlapped: the bound is the largest of the three.
    """

    compute: float
    hbm: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The bound."""
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def limit(self) -> str:
        """Which of the three it is."""
        parts = {"compute": self.compute, "hbm": self.hbm, "interconnect": self.interconnect}
        return max(parts, key=lambda name: parts[name])


def bound(
    topology: Topology,
    *,
    flops: float,
    hbm_bytes: float,
    collectives: Sequence[Collective],
    devices: np.ndarray,
) -> Bound:
    """Return the bound of a program.

    Args:
      topology: the chips.
      flops: operations of all devices together, those that are done again included.
      hbm_bytes: that one device must read and write at the least.
      collectives: what devices exchange.
      devices: of the mesh, row by row.
    """
    chip = topology.chip
    return Bound(
        flops / (topology.device_count * chip.device_flops),
        hbm_bytes / chip.device_hbm_bandwidth,
        interconnect_seconds(topology, collectives, devices),
    )


def interconnect_seconds(
    topology: Topology, collectives: Sequence[Collective], devices: np.ndarray
) -> float:
    """Return how long the busiest links are busy.

    An exchange is spread over all links of the sides of the torus along which its devices differ: two a
    side where the side is a ring, or one, that of its end. Those of other sides may run meanwhile, and so may
    those between slices.
    """
    busy: dict[int, float] = {}
    for collective in collectives:
        places = [_place(topology, devices[i]) for i in collective.group]
        sides, rate = _links(topology, places)
        # One exchange with a neighbour takes one link.
        if collective.kind == "collective-permute" and topology.chip.dimensions and rate:
            rate = min(rate, topology.chip.link_bandwidth)
        for side in sides:
            busy[side] = busy.get(side, 0.0) + collective.sent_bytes / rate
    return max(busy.values(), default=0.0)


def _place(topology: Topology, device: jax.Device) -> tuple[int, ...]:
    """Return the slice of a device, and the coordinates of its chip; of a GPU its machine and its number."""
    if topology.chip.dimensions:
        coordinates: tuple[int, ...] = tuple(device.coords)
        which = device.slice_index if topology.slices > 1 else 0
        return which, *coordinates[: topology.chip.dimensions]
    return divmod(device.id, GPUS_OF_A_MACHINE)


def _links(topology: Topology, places: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], float]:
    """Return which sides of the torus devices differ along, and the bytes a second that leave one of them.

    Side 0 is the network between slices or machines; of GPUs side 1 is NVLink. Devices of one chip alone
    exchange within it, which is not bounded here.
    """
    chip = topology.chip
    sides = tuple(i for i in range(len(places[0])) if len({place[i] for place in places}) > 1)
    if 0 in sides:
        return (0,), chip.network_bandwidth / chip.devices
    if not chip.dimensions:
        return (1,), chip.link_bandwidth
    links = 0
    for side in sides:
        whole = len({place[side] for place in places}) == topology.shape[side - 1]
        links += 2 if whole and topology.wraps(side - 1) else 1
    # The devices of a chip share its links.
    return sides, links * chip.link_bandwidth / chip.devices


def utilisation(topology: Topology, model_flops: float, seconds: float) -> float:
    """Return model FLOPs utilisation: the share of the chips' peak that the model's own operations are."""
    return model_flops / (seconds * topology.chips * topology.chip.flops) if seconds else math.nan
