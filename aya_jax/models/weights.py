"""How a layer declares its weights and multiplies by them, in whatever form they are held."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from aya_jax.errors import AyaError
from aya_jax.sharding.place import gathered


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A matrix in eight bits a number: `values * scale`.

    Attributes:
      values: int8 [..., *inputs, *outputs].
      scale: float32, one an output; its axes for the inputs have length 1.
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return self.values.shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """A matrix and what was learnt on top of it (LoRA, arXiv 2106.09685): `base + scale * a @ b`.

    Attributes:
      base: [..., *inputs, *outputs].
      a: [..., *inputs, R].
      b: [..., R, *outputs].
      scale: a number.
    """

    base: "jax.Array | Int8"
    a: jax.Array
    b: jax.Array
    scale: float = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return self.base.shape


Matrix = jax.Array | Int8 | LowRank


def normal(axes: tuple[str | None, ...], stddev: float) -> Callable[..., Any]:
    """Return an initializer from N(0, stddev) that tells the logical axes of its array."""
    return nn.with_logical_partitioning(nn.initializers.normal(stddev), axes)


def constant(axes: tuple[str, ...], value: float) -> Callable[..., Any]:
    """Return an initializer of one value that tells the logical axes of its array."""
    return nn.with_logical_partitioning(nn.initializers.constant(value), axes)


def weight(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], stddev: float
) -> Matrix:
    """Declare a weight of `module`, drawn from N(0, stddev); return it, in the form it is held in.

    Raises:
      AyaError: it is held in a form of its own, and not of `shape`.
    """
    if module.has_variable("params", name):
        held: Any = module.get_variable("params", name)
        # Flax would set the shape of each array in it against that of the whole.
        if isinstance(held, Int8 | LowRank):
            if held.shape != shape:
                raise AyaError(f"the weight '{name}' is {held.shape}; its model says {shape}")
            return held
    return module.param(name, normal(axes, stddev), shape, jnp.float32)


def _whole(matrix: Matrix, axes: tuple[str, ...], dtype: Any) -> Matrix:
    """Return a matrix that is gathered from the devices; the small factors of a `LowRank` are not.

    What is frozen stays in the dtype that it is held in: `contract` casts it in either pass, so that no copy
    is kept.
    """
    if isinstance(matrix, LowRank):
        return replace(matrix, base=_held(matrix.base, axes))
    return _held(matrix, axes) if isinstance(matrix, Int8) else gathered(matrix, axes, dtype)


def _held(matrix: jax.Array | Int8, axes: tuple[str, ...]) -> jax.Array | Int8:
    if isinstance(matrix, Int8):
        return replace(matrix, values=gathered(matrix.values, axes, jnp.int8))
    return gathered(matrix, axes, matrix.dtype)


def contract(x: jax.Array, matrix: Matrix, inputs: int = 1, *, dtype: Any = None) -> jax.Array:
    """Return the product over the last `inputs` axes of `x` and the first ones of `matrix`.

    Neither the sum of a `LowRank` nor the numbers behind an `Int8` are made: its values are exact in
    bfloat16 too, and the product is scaled.

    Args:
      x: [..., *inputs].
      matrix: [*inputs, *outputs], used in the dtype of `x`.
      inputs: how many axes are summed over.
      dtype: of the result; that of `x` if absent.

    Returns:
      [..., *outputs].
    """
    dtype = x.dtype if dtype is None else dtype
    if isinstance(matrix, LowRank):
        learnt = contract(contract(x, matrix.a, inputs), matrix.b, dtype=jnp.float32)
        whole = _frozen(x, matrix.base, inputs, jnp.float32) + matrix.scale * learnt
        return whole.astype(dtype)
    if isinstance(matrix, Int8):
        return _frozen(x, matrix, inputs, dtype)
    return jnp.tensordot(x, matrix.astype(x.dtype), inputs, preferred_element_type=dtype)


# The backward pass casts once more: what it would keep else is a wider copy of every layer.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3))
def _frozen(x: jax.Array, matrix: jax.Array | Int8, inputs: int, dtype: Any) -> jax.Array:
    """Return the product by a matrix that is not trained; see `contract`."""
    if isinstance(matrix, Int8):
        scale = matrix.scale.reshape(matrix.shape[inputs:])
        return (contract(x, matrix.values, inputs, dtype=jnp.float32) * scale).astype(dtype)
    return contract(x, matrix, inputs, dtype=dtype)


def dense(matrix: Matrix, dtype: Any) -> jax.Array:
    """Return the matrix as one array, for layers that have no product of their own for its form.

    Raises:
      AyaError: it is a `LowRank`.
    """
    if isinstance(matrix, LowRank):
        raise AyaError("experts have no LoRA; leave gate, up and down out of lora.targets")
    if isinstance(matrix, Int8):
        return (matrix.values * matrix.scale).astype(dtype)
    return matrix.astype(dtype)


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
    matrix = _whole(weight(module, name, shape, axes, stddev), axes, x.dtype)
    if not bias:
        return contract(x, matrix, inputs)
    # The sum is rounded, not the product too.
    y = contract(x, matrix, inputs, dtype=jnp.float32)
    init = constant(axes[inputs:], 0.0)
    added = module.param(f"{name}_bias", init, shape[inputs:], jnp.float32)
    return (y + added.astype(x.dtype)).astype(x.dtype)
