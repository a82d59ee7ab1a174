"""The definition of linear_logprob, with the logits made whole."""

import jax
import jax.numpy as jnp


def reference_linear_logprob(
    hidden: jax.Array,
    weight: jax.Array,
    targets: jax.Array,
    *,
    scale: float | jax.Array,
    softcap: float | None,
    mask: jax.Array,
) -> jax.Array:
    """`log_softmax(softcap(scale * hidden @ weight.T))[target]`, 0 where `mask` is False.

    Returns float32 [T]; arguments as in `api.linear_logprob`.
    """
    scores = jnp.einsum(
        "td,vd->tv", hidden.astype(jnp.float32), weight.astype(jnp.float32), precision="highest"
    )
    scores = scores * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    logprobs = jax.nn.log_softmax(scores)
    picked = jnp.take_along_axis(logprobs, targets[:, None], axis=1)[:, 0]
    return jnp.where(mask, picked, 0.0)
