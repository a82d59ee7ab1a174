"""What differs between the releases of jax that are supported, and what jax has no public name for."""

import inspect
from functools import partial

from jax._src.lib import cuda_versions
from jax.experimental.pallas import mosaic_gpu as plgpu

__all__ = ["InterpretGPUParams", "cuda_runtime", "load"]

try:
    InterpretGPUParams = plgpu.InterpretGPUParams
except AttributeError:  # before jax 0.12
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

# Before jax 0.12 it took an index too; `load(ref.at[index], layout=...)` is right for all.
if "idx" in inspect.signature(plgpu.load).parameters:
    load = partial(plgpu.load, idx=())
else:
    load = plgpu.load


def cuda_runtime() -> int | None:
    """Return the version of the CUDA runtime, 12080 for 12.8.0, or None where there is none."""
    return None if cuda_versions is None else int(cuda_versions.cuda_runtime_get_version())
