"""What differs between the supported releases of jax (0.10, 0.11, 0.12), in one place."""

import jax


def jax_version() -> tuple[int, ...]:
    """Return the running jax release as numbers, for example `(0, 10, 2)`."""
    return tuple(int(part) for part in jax.__version__.split(".")[:3] if part.isdigit())
