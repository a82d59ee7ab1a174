"""How a layer declares its weights and multiplies by them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def normal(axes: tuple[str, ...], stddev: float) -> Callable[..., Any]:
    """Return an initializer from N(0, stddev) that tells the logical axes of its array."""
    return nn.with_logical_partitioning(nn.initializers.normal(stddev), axes)


def constant(axes: tuple[str, ...], value: float) -> Callable[..., Any]:
    """Return an initializer of one value that tells the logical axes of its array."""
    return nn.with_logical_partitioning(nn.initializers.constant(value), axes)


def weight(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], stddev: float
) -> jax.Array:
    """Declare a weight of `module`, drawn from N(0, stddev); return it."""
    return module.param(name, normal(axes, stddev), shape, jnp.float32)


def contract(x: jax.Array, matrix: jax.Array, inputs: int = 1) -> jax.Array:
    """Return the product over the last `inputs` axes of `x` and the first ones of `matrix`.

    Args:
      x: [..., *inputs].
      matrix: [*inputs, *outputs], used in the dtype of `x`.
      inputs: how many axes are summed over.

    Returns:
      [..., *outputs] in the dtype of `x`.
    """
    return jnp.tensordot(x, matrix.astype(x.dtype), inputs)


def linear(
    module: nn.Module,
    name: str,
    x: jax.Array,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    stddev: float,
    *,
    inputs: int = 1,
    bias: bool = False,
) -> jax.Array:
    """Declare the weight `name` of `module` and multiply `x` by it, as `contract` does.

    Args:
      module: that the weight, and with `bias` one called `{name}_bias`, are parameters of.
      name: of the weight.
      x: [..., *inputs].
      shape, axes: sizes and logical axes of the weight, [*inputs, *outputs].
      stddev: of its initial values; those of the bias are 0.
      inputs: how many axes are summed over.
      bias: whether one is added.
    """
    y = contract(x, weight(module, name, shape, axes, stddev), inputs)
    if not bias:
        return y
    init = constant(axes[inputs:], 0.0)
    added = module.param(f"{name}_bias", init, shape[inputs:], jnp.float32)
    return y + added.astype(y.dtype)
