"""The signature of linear_logprob, and the choice of its backend."""

import jax
import jax.numpy as jnp

from aya_kernels.backends import choose_backend
from aya_kernels.linear_logprob.reference import reference_linear_logprob
from aya_kernels.linear_logprob.xla import xla_linear_logprob

BACKENDS = {"reference": reference_linear_logprob, "xla": xla_linear_logprob}


def linear_logprob(
    hidden: jax.Array,
    weight: jax.Array,
    targets: jax.Array,
    *,
    scale: float | jax.Array = 1.0,
    softcap: float | None = None,
    mask: jax.Array | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Log-probability of each target under `softmax(softcap(scale * hidden @ weight.T))`.

    Args:
      hidden: [T, D].
      weight: [V, D], the output (or tied input) embeddings.
      targets: int32 [T].
      scale: of the logits (Cohere's `logit_scale`); may be traced.
      softcap: `softcap * tanh(logit / softcap)` (Gemma 2).
      mask: bool [T]; where False the result and its gradients are 0.
      backend: `reference` makes the logits whole, `xla` (the default) never does.

    Returns:
      float32 [T].

    Raises:
      ValueError: shapes that do not fit, or a backend that does not exist.
    """
    if hidden.shape[-1] != weight.shape[-1] or hidden.shape[:1] != targets.shape:
        raise ValueError(
            f"linear_logprob: hidden {hidden.shape}, weight {weight.shape} and targets "
            f"{targets.shape} do not fit"
        )
    if mask is None:
        mask = jnp.ones(targets.shape, bool)
    elif mask.shape != targets.shape:
        raise ValueError(f"linear_logprob: mask {mask.shape} does not fit targets {targets.shape}")
    run = choose_backend("linear_logprob", BACKENDS, backend, "xla")
    return run(hidden, weight, targets, scale=scale, softcap=softcap, mask=mask)
