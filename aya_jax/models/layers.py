"""Layers that more than one architecture is made of: norms and feed-forward layers.

Shapes: D hidden, F feed-forward, E experts, X experts a token, M tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from aya_jax.models.remat import named
from aya_jax.models.weights import constant, dense, linear, weight
from aya_jax.sharding.experts import over_experts

# GELU's "new" and "pytorch_tanh" are one function, the approximation of arXiv 1606.08415, section 2.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate=True),
}


class Norm(nn.Module):
    """Normalises over the last axis in float32, times a weight of `shape`; it has no bias.

    `kind` is `layer` (mean subtracted, arXiv 1607.06450), `rms` (arXiv 1910.07467) or `gemma`
    (`rms`, times 1 + weight).
    """

    kind: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = constant(self.axes, 0.0 if self.kind == "gemma" else 1.0)
        factor = jnp.asarray(self.param("weight", init, self.shape, jnp.float32), jnp.float32)
        if self.kind == "gemma":
            factor = 1.0 + factor
        x32 = x.astype(jnp.float32)
        if self.kind == "layer":
            x32 = x32 - x32.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + self.epsilon)
        return (factor * x32 * scale).astype(x.dtype)


def gated(gate: jax.Array, up: jax.Array, activation: str) -> jax.Array:
    """Return `activation(gate) * up` in their dtype, made in float32."""
    return (ACTIVATIONS[activation](gate.astype(jnp.float32)) * up).astype(up.dtype)


def gated_mlp(
    module: nn.Module,
    x: jax.Array,
    width: int,
    *,
    activation: str,
    stddev: float,
    bias: bool = False,
) -> jax.Array:
    """Return `down(activation(gate(x)) * up(x))` (arXiv 2002.05202), [..., D] to [..., D].

    The weights `gate`, `up` [D, F] and `down` [F, D], with `bias` their biases too, are parameters
    of `module`.
    """
    d = x.shape[-1]
    shape, axes = (d, width), ("embed", "mlp")
    gate = linear(module, "gate", x, shape, axes, stddev, bias=bias)
    up = linear(module, "up", x, shape, axes, stddev, bias=bias)
    y = gated(named(gate, "mlp_in"), named(up, "mlp_in"), activation)
    return named(linear(module, "down", y, shape[::-1], axes[::-1], stddev, bias=bias), "mlp_out")


def experts_mlp(
    module: nn.Module,
    x: jax.Array,
    width: int,
    *,
    experts: int,
    chosen: int,
    activation: str,
    stddev: float,
) -> jax.Array:
    """Return the weighted sum of the `chosen` best experts of each token, [..., D] to [..., D].

    Each expert is a `gated_mlp`; the weights are the router's softmax over all experts, scaled to
    sum to 1 over the chosen ones (Mixtral, arXiv 2401.04088, section 2.1). No token is dropped:
    tokens are sorted by expert, and each expert multiplies its own run of rows, however long. The
    weights `router` [D, E], `gate`, `up` [E, D, F] and `down` [E, F, D] are parameters of `module`.
    """
    d = x.shape[-1]
    scores = linear(module, "router", x, (d, experts), ("embed", "experts"), stddev)
    shares, choices = jax.lax.top_k(jax.nn.softmax(scores.astype(jnp.float32)), chosen)
    shares = shares / shares.sum(-1, keepdims=True)
    axes = (("experts", "embed", "mlp"),) * 2 + (("experts", "mlp", "embed"),)
    shapes = ((experts, d, width),) * 2 + ((experts, width, d),)
    matrices = [
        dense(weight(module, name, shape, names, stddev), x.dtype)
        for name, shape, names in zip(("gate", "up", "down"), shapes, axes, strict=True)
    ]

    def compute(
        x: jax.Array,
        shares: jax.Array,
        choices: jax.Array,
        gate: jax.Array,
        up: jax.Array,
        down: jax.Array,
        first: jax.Array,
    ) -> jax.Array:
        """Return what the experts from `first` on, as many as `gate` has, add to each token."""
        here = len(gate)
        number = choices.reshape(-1) - first
        number = jnp.where((number >= 0) & (number < here), number, here)
        order = jnp.argsort(number, stable=True)
        sizes = jnp.bincount(number, length=here).astype(jnp.int32)
        rows = x.reshape(-1, d)[order // chosen]
        inner = [jax.lax.ragged_dot(rows, matrix, sizes) for matrix in (gate, up)]
        out = jax.lax.ragged_dot(gated(inner[0], inner[1], activation), down, sizes)
        # Rows of experts that are elsewhere come last, and add nothing here.
        out = jnp.where((number[order] < here)[:, None], out, 0)[jnp.argsort(order)]
        out = out.reshape(*choices.shape, d) * shares[..., None]
        return out.sum(-2).astype(x.dtype)

    return over_experts(compute, (x, shares, choices), matrices, axes)
