"""Attention over a part of the keys, put together with what other parts gave."""

import jax
import jax.numpy as jnp

from aya_kernels.attention.inputs import MASKED


def combine(
    out_a: jax.Array, lse_a: jax.Array, out_b: jax.Array, lse_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return attention over the keys of two parts (FlashAttention-2, arXiv 2307.08691, section 3.1).

    Args:
      out_a, out_b: [..., H], the output over each part's keys.
      lse_a, lse_b: float32 [...], the log-sum-exp of its scores; MASKED where it holds nothing.

    Returns:
      Both for the two together, float32; a row that neither part serves keeps zeros and MASKED.
    """
    outs, lses = jnp.stack([out_a, out_b]), jnp.stack([lse_a, lse_b])
    return combine_all(outs, lses, 0)


def combine_all(outs: jax.Array, lses: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """As `combine` for any number of parts, which lie along `axis` of both arrays (not negative)."""
    top = lses.max(axis, keepdims=True)
    weights = jnp.where(lses > MASKED, jnp.exp(lses - top), 0.0)
    total = weights.sum(axis, keepdims=True)
    total = jnp.where(total > 0, total, 1.0)
    out = (outs.astype(jnp.float32) * (weights / total)[..., None]).sum(axis)
    return out, (top + jnp.log(total)).squeeze(axis)
