"""What every backend without a score matrix has in common: its gradient."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from aya_kernels.attention.inputs import Inputs, Options

Pair = tuple[jax.Array, jax.Array]
Forward = Callable[[Options, Inputs], Pair]
Backward = Callable[
    [Options, Inputs, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]
]


def flash(forward: Forward, backward: Backward) -> Forward:
    """Join a forward and a backward pass (FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2).

    Args:
      forward: (options, inputs) to the output [B, T, N, H] in the dtype of q and the log-sum-exp,
        float32 [B, N, T]; a row that sees nothing has zeros and MASKED.
      backward: (options, inputs, lse, delta, g) to the gradients to q, k and v, where g is the one to
        the output, and delta, float32 [B, N, T], is `sum(g * out)` less the one to the log-sum-exp.

    Returns:
      A function as `forward` that can be differentiated, by both of its results.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def run(o: Options, x: Inputs) -> Pair:
        return forward(o, x)

    def run_forward(o: Options, x: Inputs) -> tuple[Pair, tuple[Inputs, jax.Array, jax.Array]]:
        # By this name a rematerialisation policy keeps both, and the forward pass is not run again.
        out, lse = (checkpoint_name(y, "attention") for y in forward(o, x))
        return (out, lse), (x, out, lse)

    def run_backward(
        o: Options, kept: tuple[Inputs, jax.Array, jax.Array], cotangents: Pair
    ) -> tuple[Inputs]:
        x, out, lse = kept
        g, g_lse = cotangents
        products = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
        dq, dk, dv = backward(o, x, lse, jnp.swapaxes(products, 1, 2) - g_lse, g)
        return (Inputs(dq, dk, dv),)

    run.defvjp(run_forward, run_backward)
    return run
