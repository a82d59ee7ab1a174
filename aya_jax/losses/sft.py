"""Supervised fine-tuning: the mean negative log-likelihood of completion tokens."""

import jax
import jax.numpy as jnp

from aya_jax.losses.total import Total


def sft_loss(logprobs: jax.Array, mask: jax.Array) -> Total:
    """Return the summed negative log-likelihood of the tokens under `mask`, and their count.

    Args:
      logprobs: float32 [B, T], log p of each token given those before it.
      mask: bool [B, T], True on the tokens that are learnt (completions).
    """
    weights = mask.astype(jnp.float32)
    count = weights.sum()
    nll = -(logprobs * weights).sum()
    return Total(nll, count, {"loss": (nll, count)})
