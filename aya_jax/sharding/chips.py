"""What chips can do at best and what they cost, as their makers and sellers publish it.

Sources. TPUs: the pages `v5e`, `v5p`, `v6e` and `tpu7x` of docs.cloud.google.com/tpu/docs, whose "bidirectional
inter-chip interconnect bandwidth per chip" is over all links of a chip and both directions; a chip of a 2D torus has 4
links, of a 3D torus 6. GPUs: NVIDIA's data sheets of A100, H100, H200 (SXM), HGX B200; dense bfloat16, without
sparsity; NVLink's published bandwidth counts both directions. None of these is a measurement of ours.

Prices are on demand, in US dollars an hour for one chip, of single regions or sellers: those differ several
times over, and change. `PRICES_READ` is when they were read, `price_source` where.
"""

from typing import NamedTuple

GIB = 1 << 30
PRICES_READ = "2026-11-25"
_GOOGLE = "Google Cloud, us-central1, as the SkyPilot catalogue (catalogs/v8/gcp) lists it"
_LAMBDA = "Lambda, machines of eight, as the SkyPilot catalogue (catalogs/v8/lambda) lists it"
_NEBIUS = "Nebius, machines of eight, as the SkyPilot catalogue (catalogs/v8/nebius) lists it"


class Chip(NamedTuple):
    """One kind of chip.

    Attributes:
      name: as topologies call it.
      platform: `tpu` or `cuda`.
      kinds: how jax begins the `device_kind` of its devices.
      flops: dense bfloat16 operations a second.
      hbm_bytes: its memory.
      hbm_bandwidth: bytes a second to and from that memory.
      link_bandwidth: bytes a second over one link to a neighbour, in one direction; of a GPU, over all of
        its NVLinks.
      dimensions: of the torus that its links make; 0 where a switch joins all chips of a machine.
      wraps_at: sizes of the torus that are multiples of this have links from one end to the other.
      network_bandwidth: bytes a second to other slices or machines, in one direction, for each chip.
      devices: how many devices jax shows of a chip; they share all of the above.
      price: US dollars an hour, None where none is published.
      price_source: who asks it.
    """

    name: str
    platform: str
    kinds: tuple[str, ...]
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    dimensions: int
    wraps_at: int
    network_bandwidth: float
    devices: int = 1
    price: float | None = None
    price_source: str = ""

    @property
    def device_flops(self) -> float:
        """Dense bfloat16 operations a second of one device."""
        return self.flops / self.devices

    @property
    def device_hbm_bytes(self) -> int:
        """The memory of one device."""
        return self.hbm_bytes // self.devices

    @property
    def device_hbm_bandwidth(self) -> float:
        """Bytes a second to and from the memory of one device."""
        return self.hbm_bandwidth / self.devices


# The network of v5e is a pod's 6.4 Tb/s over its 256 chips; of GPUs, one adapter each as in NVIDIA's DGX
# machines (200 Gb/s beside an A100, 400 Gb/s beside the others).
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            "v5e", "tpu", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 50e9, 2, 16, 3.125e9,
            price=1.20, price_source=_GOOGLE,
        ),
        Chip(
            "v5p", "tpu", ("TPU v5p", "TPU v5"), 459e12, 95 * GIB, 2765e9, 100e9, 3, 4, 6.25e9,
            price=4.20, price_source=_GOOGLE,
        ),
        Chip(
            "v6e", "tpu", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1638e9, 100e9, 2, 16, 12.5e9,
            price=2.70, price_source=_GOOGLE,
        ),
        Chip("tpu7x", "tpu", ("TPU7x",), 2307e12, 192 * GIB, 7380e9, 100e9, 3, 4, 12.5e9, devices=2),
        Chip(
            "a100-80", "cuda", ("NVIDIA A100-SXM4-80GB",), 312e12, 80 * GIB, 2039e9, 300e9, 0, 0, 25e9,
            price=2.79, price_source=_LAMBDA,
        ),
        Chip(
            "h100", "cuda", ("NVIDIA H100 80GB HBM3",), 989e12, 80 * GIB, 3350e9, 450e9, 0, 0, 50e9,
            price=3.99, price_source=_LAMBDA,
        ),
        Chip(
            "h200", "cuda", ("NVIDIA H200",), 989e12, 141 * GIB, 4800e9, 450e9, 0, 0, 50e9,
            price=3.50, price_source=_NEBIUS,
        ),
        Chip(
            "b200", "cuda", ("NVIDIA B200",), 2250e12, 180 * GIB, 8000e9, 900e9, 0, 0, 50e9,
            price=6.69, price_source=_LAMBDA,
        ),
    )
}  # fmt: skip


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip that jax calls `device_kind`, or None where the table has it not.

    `TPU v5` is a v5p, and `TPU v5 lite` a v5e: the longest name that fits counts.
    """
    fitting = [
        (len(kind), chip)
        for chip in CHIPS.values()
        for kind in chip.kinds
        if device_kind.startswith(kind)
    ]
    return max(fitting, key=lambda found: found[0])[1] if fitting else None
