"""Arrays to run on, and our backends that can run here."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from aya_kernels.backends import Backend, current_target


def normal(seed: int, *shape: int, dtype: Any = jnp.bfloat16) -> jax.Array:
    """Return independent standard normal numbers."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def ours(backends: Mapping[str, Backend]) -> list[str]:
    """Return the backends to measure here: not interpreted ones, and not the definition."""
    here = current_target().platform
    return [
        name
        for name, backend in backends.items()
        if name != "reference" and backend.platform in (None, here)
    ]
