"""The table of chips: found by what jax calls their devices, and without slips of units."""

import pytest

from aya_jax.sharding.chips import CHIPS, GIB, chip_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
    ],
)
def test_a_chip_is_found_by_its_device_kind(kind, name):
    assert chip_of(kind) is CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "TPU v4", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB"])
def test_another_chip_is_not_taken_for_one_of_the_table(kind):
    assert chip_of(kind) is None


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_units_are_plausible(chip):
    """A slip of a thousand would leave these bounds, which hold for chips of 2020 to 2026."""
    assert 100e12 < chip.flops < 5000e12
    assert 16 * GIB <= chip.hbm_bytes <= 256 * GIB
    assert 500e9 < chip.hbm_bandwidth < 10_000e9
    assert chip.network_bandwidth < chip.link_bandwidth < chip.hbm_bandwidth
    assert chip.devices * chip.device_hbm_bytes == chip.hbm_bytes
    # A price is never told without who asks it.
    assert (chip.price is None) == (not chip.price_source)
