"""Supervised fine-tuning: the mean negative log-likelihood of completion tokens."""

import jax
import jax.numpy as jnp

from aya_jax.losses.total import Total, by_language


def sft_loss(logprobs: jax.Array, mask: jax.Array, languages: jax.Array | None = None) -> Total:
    """Return the summed negative log-likelihood of the tokens under `mask`, and their count.

    Args:
      logprobs: float32 [B, T], log p of each token given those before it.
      mask: bool [B, T], True on the tokens that are learnt (completions).
      languages: int32 [B, T], numbers of the tokens' languages; adds `loss_by_language`.
    """
    weights = mask.astype(jnp.float32)
    count = weights.sum()
    nll = -(logprobs * weights).sum()
    metrics = {"loss": (nll, count)}
    if languages is not None:
        metrics["loss_by_language"] = by_language(-logprobs, weights, languages)
    return Total(nll, count, metrics)
