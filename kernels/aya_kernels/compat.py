"""What differs between the releases of jax that are supported, and what has no public name in some."""

import inspect
from typing import Any

import jax
from jax._src.lib import cuda_versions
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams as InterpretGPUParams
from jax.experimental.pallas import mosaic_gpu as plgpu


def load(ref: Any, **options: Any) -> jax.Array:
    """Return `plgpu.load(ref, **options)`, which took an index too before jax 0.12."""
    plgpu_load: Any = plgpu.load
    index = {"idx": ()} if "idx" in inspect.signature(plgpu_load).parameters else {}
    loaded: jax.Array = plgpu_load(ref, **index, **options)
    return loaded


def cuda_runtime() -> int | None:
    """Return the version of the CUDA runtime, 12080 for 12.8.0, or None where there is none."""
    if cuda_versions is None:
        return None
    try:
        return int(cuda_versions.cuda_runtime_get_version())
    except RuntimeError:  # jax's plugin is here and CUDA is not
        return None
