"""What XLA has to know of a GPU that is not here, to compile for it.

The fields are those of stream_executor/device_description.proto (openxla/xla); the figures are those of NVIDIA's
CUDA C++ programming guide (compute capabilities) and data sheets.
"""

from typing import NamedTuple

from aya_jax.sharding.chips import Chip


class Cores(NamedTuple):
    """The multiprocessors of a GPU: how many, and what each has."""

    capability: tuple[int, int]
    processors: int
    fpus: int
    shared_memory: int
    l2_cache: int
    clock_ghz: float


CORES = {
    "a100-80": Cores((8, 0), 108, 64, 167_936, 41_943_040, 1.41),
    "h100": Cores((9, 0), 132, 128, 233_472, 52_428_800, 1.98),
    "h200": Cores((9, 0), 132, 128, 233_472, 52_428_800, 1.98),
    "b200": Cores((10, 0), 148, 128, 233_472, 132_120_576, 1.96),
}
# What a block may not have of its multiprocessor's shared memory.
RESERVED = 1024


def compute_capability(chip: Chip) -> float:
    """Return the compute capability of a GPU, 9.0 for Hopper."""
    major, minor = CORES[chip.name].capability
    return major + minor / 10


def target_config(chip: Chip) -> str:
    """Return the description of a GPU that XLA compiles for, as the text of its protocol buffer."""
    cores = CORES[chip.name]
    major, minor = cores.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {cores.shared_memory - RESERVED}
  shared_memory_per_core: {cores.shared_memory} core_count: {cores.processors} fpus_per_core: {cores.fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {chip.hbm_bandwidth:.0f} l2_cache_size: {cores.l2_cache}
  clock_rate_ghz: {cores.clock_ghz} device_memory_size: {chip.hbm_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{chip.kinds[0]}"
"""
