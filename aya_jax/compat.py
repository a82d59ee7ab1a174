"""What differs between the supported releases of jax (0.10, 0.11, 0.12), in one place."""

import platform
from importlib.metadata import version

import jax


def jax_version() -> tuple[int, ...]:
    """Return the running jax release as numbers, for example `(0, 10, 2)`."""
    return tuple(int(part) for part in jax.__version__.split(".")[:3] if part.isdigit())


def versions() -> dict[str, str]:
    """Return the releases that a result depends on, by name."""
    packages = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "sentencepiece",
        "tokenizers",
        "babel",
    )
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "device": jax.devices()[0].device_kind,
    }
