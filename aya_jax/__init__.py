"""Multilingual post-training in JAX: arbitrage, SFT, merging, offline and online DPO.

The front doors, for notebooks and other programs:

    model = aya_jax.load("DIR")
    texts = aya_jax.generate(model, ["Hello"], max_new_tokens=64)
    aya_jax.merge(["A", "B"], out="DIR", method="linear", weights=[0.5, 0.5])
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from aya_jax.generation.generate import generate as generate
    from aya_jax.merging.merge import merge as merge
    from aya_jax.model import load as load

__all__ = ["__version__", "generate", "load", "merge"]

# Imported on first use, so that `aya --help` does not wait for jax.
_DOORS = {
    "generate": "aya_jax.generation.generate",
    "load": "aya_jax.model",
    "merge": "aya_jax.merging.merge",
}


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'aya_jax' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_DOORS[name]), name)
