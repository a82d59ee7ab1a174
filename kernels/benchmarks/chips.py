"""What a chip can do at best, by its maker's data sheet."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Dense bfloat16 operations a second, and bytes a second to and from its memory."""

    operations: float
    bandwidth: float


# By the beginning of what jax calls the device; the longer name first.
CHIPS = {
    "NVIDIA H200": Chip(989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 3.35e12),
    "NVIDIA H100 PCIe": Chip(756e12, 2.0e12),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2.039e12),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 1.555e12),
    "TPU v5 lite": Chip(197e12, 0.819e12),
    "TPU v5": Chip(459e12, 2.765e12),
    "TPU v6 lite": Chip(918e12, 1.64e12),
}


def known(kind: str) -> Chip | None:
    """Return what is known of a device, or None."""
    return next((chip for name, chip in CHIPS.items() if kind.startswith(name)), None)
