"""Bounds by hand."""

from dataclasses import dataclass

import numpy as np
import pytest

from aya_jax.planning.collectives import Collective
from aya_jax.planning.roofline import bound, interconnect_seconds, utilisation
from aya_jax.planning.topology import parse_topology


@dataclass(frozen=True)
class Device:
    """What of a device the bounds look at."""

    id: int
    coords: tuple
    slice_index: int = 0


def grid(columns, rows):
    places = [(x, y, 0) for y in range(rows) for x in range(columns)]
    return np.array([Device(i, place) for i, place in enumerate(places)], dtype=object)


def gather(group, size, kind="all-gather"):
    return Collective(kind, ("a",), len(group), tuple(group), 1, size, float(size))


V5E = parse_topology("v5e:8x8")
DEVICES = grid(8, 8)
ROW, COLUMN, ALL = range(8), range(0, 64, 8), range(64)


def test_a_row_of_a_torus_that_does_not_close_has_one_link_at_its_end():
    assert interconnect_seconds(V5E, [gather(ROW, 50e9)], DEVICES) == pytest.approx(1.0)


def test_a_ring_has_two_links():
    wide = parse_topology("v5e:16x16")
    devices = grid(16, 16)
    assert interconnect_seconds(wide, [gather(range(16), 100e9)], devices) == pytest.approx(1.0)
    # Half of a ring is a line.
    assert interconnect_seconds(wide, [gather(range(8), 50e9)], devices) == pytest.approx(1.0)


def test_sides_of_the_torus_work_at_once_and_one_side_in_turn():
    both = [gather(ROW, 50e9), gather(COLUMN, 50e9)]
    assert interconnect_seconds(V5E, both, DEVICES) == pytest.approx(1.0)
    assert interconnect_seconds(V5E, [gather(ROW, 50e9)] * 2, DEVICES) == pytest.approx(2.0)
    assert interconnect_seconds(V5E, [gather(ALL, 100e9)], DEVICES) == pytest.approx(1.0)


def test_gpus_of_a_machine_exchange_by_nvlink_and_machines_by_their_network():
    gpus = parse_topology("gpu:16xh100")
    devices = np.array([Device(i, ()) for i in range(16)], dtype=object)
    inside = interconnect_seconds(gpus, [gather(range(8), 450e9)], devices)
    across = interconnect_seconds(gpus, [gather((0, 8), 50e9)], devices)
    assert inside == pytest.approx(1.0) and across == pytest.approx(1.0)


def test_slices_exchange_by_the_network_of_their_chips():
    two = parse_topology("2xv5e:8x8")
    devices = np.concatenate([grid(8, 8), grid(8, 8)])
    devices[64:] = [Device(d.id + 64, d.coords, 1) for d in devices[64:]]
    across = gather((5, 69), 3.125e9)
    assert interconnect_seconds(two, [across], devices) == pytest.approx(1.0)
    # Links within a slice work meanwhile.
    assert interconnect_seconds(two, [across, gather(ROW, 50e9)], devices) == pytest.approx(1.0)


def test_two_devices_of_a_chip_share_its_links():
    chips = parse_topology("tpu7x:4x4x4")
    places = [(x, 0, 0) for x in range(4) for _ in range(2)]
    devices = np.array([Device(i, place) for i, place in enumerate(places)], dtype=object)
    # A ring of four chips: two links of 100 GB/s for the two devices of each.
    assert interconnect_seconds(chips, [gather(range(8), 100e9)], devices) == pytest.approx(1.0)
    # Within a chip nothing is bounded.
    assert interconnect_seconds(chips, [gather((0, 1), 100e9)], devices) == 0


def test_the_bound_is_the_slowest_of_the_three():
    roof = bound(
        V5E,
        flops=64 * 197e12 * 2,
        hbm_bytes=819e9,
        collectives=[gather(ROW, 50e9)],
        devices=DEVICES,
    )
    assert (roof.compute, roof.hbm, roof.interconnect) == pytest.approx((2.0, 1.0, 1.0))
    assert roof.seconds == 2.0 and roof.limit == "compute"
    # Of the operations three quarters are the model's own, the others are done again.
    assert utilisation(V5E, 0.75 * 64 * 197e12 * 2, roof.seconds) == pytest.approx(0.75)
