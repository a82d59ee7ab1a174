"""Direct preference optimisation and its siblings, over summed log-probabilities."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aya_jax.errors import AyaError, nearest
from aya_jax.losses.total import Total, by_language


def _sigmoid(margin: jax.Array, beta: jax.Array, label_smoothing: float) -> jax.Array:
    """DPO (arXiv 2305.18290, equation 7); smoothed: conservative DPO (Mitchell, 2023)."""
    return -(1.0 - label_smoothing) * jax.nn.log_sigmoid(
        beta * margin
    ) - label_smoothing * jax.nn.log_sigmoid(-beta * margin)


def _hinge(margin: jax.Array, beta: jax.Array, label_smoothing: float) -> jax.Array:
    """SLiC-HF's hinge (arXiv 2305.10425) on DPO's implicit reward, as in RSO (2309.06657)."""
    del label_smoothing
    return jax.nn.relu(1.0 - beta * margin)


def _ipo(margin: jax.Array, beta: jax.Array, label_smoothing: float) -> jax.Array:
    """IPO (arXiv 2310.12036, equation 17): `(margin - 1 / (2 beta))^2`."""
    del label_smoothing
    return (margin - 1.0 / (2.0 * beta)) ** 2


VARIANTS: dict[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
}


def dpo_loss(
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    reference_chosen: jax.Array,
    reference_rejected: jax.Array,
    *,
    beta: float | jax.Array,
    variant: str = "sigmoid",
    label_smoothing: float = 0.0,
    weights: jax.Array | None = None,
    languages: jax.Array | None = None,
) -> Total:
    """Return the preference loss summed over pairs, with TRL's metrics.

    `-log sigmoid(beta * ((log pi_w - log ref_w) - (log pi_l - log ref_l)))` for the default
    variant (arXiv 2305.18290, equation 7).

    Args:
      policy_chosen, policy_rejected, reference_chosen, reference_rejected: float32 [P], the summed
        log-probabilities of the completions of each pair.
      beta: strength of the pull towards the reference.
      variant: `sigmoid`, `hinge` or `ipo`.
      label_smoothing: chance that a label is flipped (only for `sigmoid`).
      weights: float32 [P], 0.0 for rows that only fill up a batch; all ones if absent.
      languages: int32 [P], numbers of the pairs' languages; adds `loss_by_language`.

    Raises:
      AyaError: an unknown variant, or label smoothing with a variant that has none.
    """
    if variant not in VARIANTS:
        raise AyaError(f"dpo_loss: unknown variant {variant!r}{nearest(variant, VARIANTS)}")
    if label_smoothing and variant != "sigmoid":
        raise AyaError(f"dpo_loss: variant {variant!r} has no label_smoothing; set it to 0")
    if weights is None:
        weights = jnp.ones_like(policy_chosen)
    beta = jnp.asarray(beta, jnp.float32)
    chosen = beta * (policy_chosen - reference_chosen)
    rejected = beta * (policy_rejected - reference_rejected)
    margin = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    count = weights.sum()
    each = VARIANTS[variant](margin, beta, label_smoothing)
    loss = (each * weights).sum()

    def mean(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (values * weights).sum(), count

    metrics = {
        "loss": (loss, count),
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/margins": mean(chosen - rejected),
        "rewards/accuracies": mean((chosen > rejected).astype(jnp.float32)),
        "logps/chosen": mean(policy_chosen),
        "logps/rejected": mean(policy_rejected),
    }
    if languages is not None:
        metrics["loss_by_language"] = by_language(each, weights, languages)
    return Total(loss, count, metrics)
