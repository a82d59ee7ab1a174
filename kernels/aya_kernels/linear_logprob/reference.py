"""The definition of the linear log-probability, with the logits made whole."""

import jax
import jax.numpy as jnp

from aya_kernels.backends import Target
from aya_kernels.linear_logprob.inputs import Inputs, Options, Statistics, masked


def reference_linear_logprob(o: Options, x: Inputs) -> Statistics:
    """What `log_softmax(softcap(scale * hidden @ weight.T))` [T, V] says; 0 where the mask is False."""
    scores = jnp.einsum(
        "td,vd->tv", x.hidden.astype(jnp.float32), x.weight.astype(jnp.float32), precision="highest"
    )
    scores = scores * x.scale
    if o.softcap is not None:
        scores = o.softcap * jnp.tanh(scores / o.softcap)
    logprobs = jax.nn.log_softmax(scores)
    found = Statistics(
        logp=jnp.take_along_axis(logprobs, x.targets[:, None], axis=1)[:, 0],
        lse=jax.nn.logsumexp(scores, axis=1),
        entropy=-(jnp.exp(logprobs) * logprobs).sum(1) if o.entropy else None,
        argmax=scores.argmax(1).astype(jnp.int32) if o.argmax else None,
    )
    return masked(found, x.mask)


def refuses(target: Target, o: Options, x: Inputs) -> str | None:
    """Return why the definition cannot be computed there, or None."""
    return "it needs the whole weight, not a device's part of it" if o.axes or o.columns else None
