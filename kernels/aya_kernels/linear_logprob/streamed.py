"""What every backend that never holds the logits has in common: its tokens and its gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from aya_kernels.linear_logprob.backward import backward
from aya_kernels.linear_logprob.inputs import MASKED, Inputs, Options, Statistics, Sums
from aya_kernels.linear_logprob.shards import local, statistics
from aya_kernels.linear_logprob.slabs import slabs_backward, slabs_forward
from aya_kernels.linear_logprob.tokens import masked_last


def streamed(forward: Callable[[Options, Inputs], Sums]) -> Callable[[Options, Inputs], Statistics]:
    """Make a backend of a forward pass over the rows of the weight.

    Args:
      forward: (options, inputs) to the `Sums` of each token. Where `inputs.count` is given, tokens
        from there on cost nothing and get anything. `inputs.mask` is not its business.

    Returns:
      A function as `reference_linear_logprob` that can be differentiated by hidden, weight and scale.
      Where `options.axes` are given it runs inside `jax.shard_map` on the rows of its device.
    """

    forward = slabs_forward(forward)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def sums(o: Options, x: Inputs) -> Sums:
        return forward(o, x)

    def sums_forward(o: Options, x: Inputs) -> tuple[Sums, tuple[Inputs, jax.Array]]:
        out = forward(o, x)
        return out, (x, out.top)

    def sums_backward(o: Options, kept: tuple[Inputs, jax.Array], g: Sums) -> tuple[Inputs]:
        x, top = kept
        if x.count is not None and x.mask is not None:
            # Nothing is known of the tokens left out: no score reaches this top, none has a gradient.
            top = jnp.where(x.mask, top, -MASKED)
        d_hidden, d_weight, d_scale = slabs_backward(backward)(o, x, top, g)
        none: Any = None
        return (Inputs(d_hidden.astype(x.hidden.dtype), d_weight, none, d_scale),)

    sums.defvjp(sums_forward, sums_backward)

    def run(o: Options, x: Inputs) -> Statistics:
        x, restored = masked_last(x)
        return jax.tree.map(restored, statistics(o, x, sums(o, local(o, x))))

    return run
