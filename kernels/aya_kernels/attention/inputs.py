"""What every backend of attention takes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

SegmentIds = tuple[jax.Array, jax.Array]
Window = int | jax.Array | None
Offset = int | jax.Array

# Stands for minus infinity: finite, so that a row with nothing to see never makes inf - inf.
MASKED = -1e30
# The longest window: positions can be added to it without overflow.
LONGEST_WINDOW = 1 << 30


class Options(NamedTuple):
    """What does not change within a call; hashable."""

    causal: bool
    softcap: float | None
    scale: float


class Inputs(NamedTuple):
    """The arrays of a call; None stands for an option that is absent.

    Row t of the queries is at position `q_offset + t`, row s of the keys at `kv_offset + s`.
    """

    q: jax.Array  # [B, T, N, H]
    k: jax.Array  # [B, S, K, H]
    v: jax.Array  # [B, S, K, H]
    q_ids: jax.Array | None = None  # int32 [B, T]
    kv_ids: jax.Array | None = None  # int32 [B, S]
    window: jax.Array | None = None  # int32 []
    q_offset: jax.Array | None = None  # int32 []
    kv_offset: jax.Array | None = None  # int32 []


def int32(value: int | jax.Array) -> jax.Array:
    """Return a number as an int32 array; what is an array already (or its shape) stays as it is."""
    if isinstance(value, int):
        return jnp.asarray(min(value, LONGEST_WINDOW), jnp.int32)
    return value if value.dtype == jnp.int32 else value.astype(jnp.int32)
