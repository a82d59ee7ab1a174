"""What every backend of decode_attention takes, and which slots its queries see."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from aya_kernels.attention.inputs import LONGEST_WINDOW


class Options(NamedTuple):
    """What does not change within a call; hashable."""

    softcap: float | None
    scale: float


class Inputs(NamedTuple):
    """The arrays of a call; None stands for an option that is absent."""

    q: jax.Array  # [B, T, N, H]
    k_cache: jax.Array  # [B, S, K, H], or pages: [P, page size, K, H]
    v_cache: jax.Array  # as k_cache
    lengths: jax.Array  # int32 [B]
    page_table: jax.Array | None = None  # int32 [B, pages of a row]
    window: jax.Array | None = None  # int32 []

    @property
    def slots(self) -> int:
        """How many slots a row has: S, or those of all its pages."""
        if self.page_table is None:
            return self.k_cache.shape[1]
        return self.page_table.shape[1] * self.k_cache.shape[1]


class Seen(NamedTuple):
    """The slots that a row's queries see, int32 [B] each.

    The last query sees the slots in [low, high); the one `t` places before it sees [low - t, high - t),
    as far as these are slots. What is no slot in [low - T + 1, high) is seen by no query of the row.
    """

    low: jax.Array
    high: jax.Array

    @classmethod
    def of(cls, x: Inputs) -> "Seen":
        high = jnp.clip(x.lengths, 0, x.slots)
        window = LONGEST_WINDOW if x.window is None else jnp.clip(x.window, 0, LONGEST_WINDOW)
        return cls(high - window, high)

    def first(self, queries: int) -> jax.Array:
        """Return the first slot that any of a row's queries sees, if they see one."""
        return jnp.maximum(self.low - (queries - 1), 0)

    def mask(self, queries: int, slots: jax.Array) -> jax.Array:
        """Return bool [B, T, slots], where a query sees a slot; `slots` is int32 [slots]."""
        behind = jnp.arange(queries - 1, -1, -1)[:, None]
        place = slots + behind
        return (place >= self.low[:, None, None]) & (place < self.high[:, None, None])
