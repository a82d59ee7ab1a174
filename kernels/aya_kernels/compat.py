"""What differs between the releases of jax that are supported."""

import inspect
from functools import partial

from jax.experimental.pallas import mosaic_gpu as plgpu

try:
    InterpretGPUParams = plgpu.InterpretGPUParams
except AttributeError:  # before jax 0.12
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

# Before jax 0.12 it took an index too; `load(ref.at[index], layout=...)` is right for all.
if "idx" in inspect.signature(plgpu.load).parameters:
    load = partial(plgpu.load, idx=())
else:
    load = plgpu.load

__all__ = ["InterpretGPUParams", "load"]
