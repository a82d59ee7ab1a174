"""The Bradley-Terry loss of reward models."""

import jax
import jax.numpy as jnp

from aya_jax.losses.total import Total, by_language


def bradley_terry_loss(
    chosen: jax.Array,
    rejected: jax.Array,
    *,
    center_coefficient: float = 0.0,
    weights: jax.Array | None = None,
    languages: jax.Array | None = None,
) -> Total:
    """Return `-log sigmoid(r_chosen - r_rejected)` summed over pairs, with TRL's metrics.

    Source: Bradley and Terry, 1952; Ouyang et al. (arXiv 2203.02155, equation 1). The optional
    `center_coefficient * (r_chosen + r_rejected)^2` keeps rewards near zero (arXiv 2312.09244).

    Args:
      chosen, rejected: float32 [P] rewards.
      center_coefficient: weight of the centring term.
      weights: float32 [P], 0.0 for rows that only fill up a batch; all ones if absent.
      languages: int32 [P], numbers of the pairs' languages; adds `loss_by_language`.
    """
    if weights is None:
        weights = jnp.ones_like(chosen)
    margin = chosen - rejected
    each = -jax.nn.log_sigmoid(margin) + center_coefficient * (chosen + rejected) ** 2
    count = weights.sum()
    loss = (each * weights).sum()
    metrics = {
        "loss": (loss, count),
        "rewards/chosen": ((chosen * weights).sum(), count),
        "rewards/rejected": ((rejected * weights).sum(), count),
        "rewards/margins": ((margin * weights).sum(), count),
        "rewards/accuracies": (((margin > 0) * weights).sum(), count),
    }
    if languages is not None:
        metrics["loss_by_language"] = by_language(each, weights, languages)
    return Total(loss, count, metrics)
