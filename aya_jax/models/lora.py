"""LoRA: parameters with something small and trainable on top of them, and the frozen base in 8 bits.

Source: arXiv 2106.09685 (LoRA), arXiv 2312.03732 (rsLoRA's scale), arXiv 2305.14314 (a quantised base).
Adapters are nested dicts with the paths of the parameters: where a matrix is adapted there are `a` and
`b`, and the reward head `score` is there as a whole.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aya_jax.errors import AyaError, nearest
from aya_jax.models.weights import Int8, LowRank
from aya_jax.sharding.mesh import logical_spec, replicated

Params = dict[str, Any]

# The matrices that can be adapted or held in 8 bits, and how many axes of each are summed over.
INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
BASE_DTYPES = ("float32", "bfloat16", "int8")
HEAD = "score"


@dataclass(frozen=True)
class LoRA:
    """Which matrices get a product of low rank, and how the frozen base is held.

    Attributes:
      rank: of the product.
      alpha: the product is scaled by `alpha / rank`, with `use_rslora` by `alpha / sqrt(rank)`.
      targets: keys of `INPUTS`.
      use_rslora: see `alpha`.
      base_dtype: of the base in training, one of `BASE_DTYPES`; as it is if absent. In `int8` the
        embedding, norms, biases and routers stay as they are.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = tuple(INPUTS)
    use_rslora: bool = False
    base_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise AyaError(f"lora.rank is {self.rank}; it must be at least 1")
        if not self.targets:
            raise AyaError(f"lora.targets is empty; choose from {', '.join(INPUTS)}")
        for name in self.targets:
            if name not in INPUTS:
                raise AyaError(f"lora.targets: unknown matrix {name!r}{nearest(name, INPUTS)}")
        if self.base_dtype is not None and self.base_dtype not in BASE_DTYPES:
            hint = nearest(self.base_dtype, BASE_DTYPES)
            raise AyaError(f"lora.base_dtype: unknown dtype {self.base_dtype!r}{hint}")

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def init_adapters(lora: LoRA, params: Params, key: jax.Array) -> Params:
    """Return float32 adapters that change nothing yet: `b` is zero, and `a` as PEFT draws it.

    That is from U(-1, 1) / sqrt(inputs). A reward head is copied.

    Args:
      lora: what to adapt.
      params: of the model; only shapes are read, but for the head.
      key: of the draws; each matrix has its own, that follows from its path.

    Raises:
      AyaError: the model has none of the targets, or they are experts.
    """

    def adapter(path: tuple[str, ...], leaf: Any) -> Params:
        a, b = _factors(lora.rank, path[-1], leaf.shape)
        digest = hashlib.sha256("/".join(path).encode()).digest()
        own = jax.random.fold_in(key, int.from_bytes(digest[:4], "big"))
        bound = 1.0 / math.sqrt(math.prod(a[1:-1]))
        drawn = jax.random.uniform(own, a, jnp.float32, -bound, bound)
        return {"a": drawn, "b": jnp.zeros(b, jnp.float32)}

    return _adapted(lora, params, adapter, lambda head: jnp.array(head, jnp.float32))


def adapter_axes(lora: LoRA, axes: Params) -> Params:
    """Return the logical axes of the adapters, from those of the parameters; ranks are not split."""

    def adapter(path: tuple[str, ...], spec: PartitionSpec) -> Params:
        a, b = _factors(None, path[-1], tuple(spec))
        return {"a": logical_spec(a), "b": logical_spec(b)}

    return _adapted(lora, axes, adapter, lambda head: head)


def _factors(rank: Any, name: str, whole: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    """Return shapes (or axes) of `a` and `b` from those of a stack of matrices."""
    split = 1 + INPUTS[name]
    return (*whole[:split], rank), (*whole[:1], rank, *whole[split:])


def _adapted(
    lora: LoRA,
    tree: Params,
    adapter: Callable[[tuple[str, ...], Any], Params],
    head: Callable[[Any], Any],
) -> Params:
    found: set[str] = set()

    def at(node: Params, path: tuple[str, ...]) -> Params:
        made: Params = {}
        for name, child in node.items():
            if isinstance(child, dict):
                below = at(child, (*path, name))
                if below:
                    made[name] = below
            elif name in lora.targets:
                if _is_expert(node, name):
                    raise AyaError(
                        f"lora.targets: '{name}' is an expert's here, and experts cannot be adapted; "
                        "leave gate, up and down out"
                    )
                found.add(name)
                made[name] = adapter((*path, name), child)
            elif (*path, name) == (HEAD,):
                made[name] = head(child)
        return made

    adapters = at(tree, ())
    missing = [name for name in lora.targets if name not in found]
    if missing:
        raise AyaError(f"lora.targets: the model has no matrix '{missing[0]}'; leave it out")
    return adapters


def _is_expert(block: Params, name: str) -> bool:
    return "router" in block and name in ("gate", "up", "down")


def join(lora: LoRA, base: Params, adapters: Params) -> Params:
    """Return parameters that a model takes as any others, with `LowRank` leaves on the base's."""

    def adapted(below: Any, a: Any, b: Any) -> LowRank:
        return LowRank(below, a, b, lora.scale)

    return _over(base, adapters, adapted, lambda _, head: head)


def _over(
    base: Params,
    adapters: Params,
    adapted: Callable[[Any, Any, Any], Any],
    head: Callable[[Any, Any], Any],
) -> Params:
    """Return the base with `adapted(matrix, a, b)` and `head(old, new)` where there are adapters."""

    def at(below: Any, over: Any) -> Any:
        if not isinstance(over, dict):
            return head(below, over)
        if over.keys() == {"a", "b"}:
            return adapted(below, over["a"], over["b"])
        return {**below, **{name: at(below.get(name), part) for name, part in over.items()}}

    return at(base, adapters)


def merge(lora: LoRA, base: Params, adapters: Params) -> Params:
    """Return plain parameters: products in float32, added in float32, rounded once to the base's dtype.

    A product of zero leaves every bit of the base as it is. What the host's memory has of `base`, NumPy
    arrays among it, it has in the result, so that a model need not fit on the devices.
    """

    def head(below: Any, over: Any) -> Any:
        return np.asarray(over) if isinstance(below, np.ndarray) else jnp.asarray(over)

    def adapted(below: Any, a: Any, b: Any) -> Any:
        if not _is_placed(below):
            return head(below, _merged(below, a, b, lora.scale))
        # Adapters are small: every device has all of them.
        a, b = jax.device_put((np.asarray(a), np.asarray(b)), replicated(below.sharding.mesh))
        return jax.device_put(_merged(on_device(below), a, b, lora.scale), below.sharding)

    return _over(base, adapters, adapted, head)


def _is_placed(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)


@jax.jit
def _merged(base: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    def layer(matrices: tuple[jax.Array, ...]) -> jax.Array:
        base, a, b = matrices
        added = scale * jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
        # 0 added to -0 would be 0.
        return jnp.where(added == 0, base, (base.astype(jnp.float32) + added).astype(base.dtype))

    # Layer by layer: in float32 a whole stack may be larger than what is left of the memory.
    return jax.lax.map(layer, (base, a, b))


def average(
    lora: LoRA, adapters: Sequence[Params], weights: Sequence[float]
) -> tuple[LoRA, Params]:
    """Return the adapters whose product is the weighted mean of all products, and what they are under.

    The mean of several factors' products is not the product of their means; it is that of the factors
    set side by side, so its rank is the sum of the ranks. The weights sum to one.
    """
    count = len(adapters)

    def at(parts: Sequence[Any]) -> Any:
        if not isinstance(parts[0], dict):
            return sum(w * jnp.asarray(part) for w, part in zip(weights, parts, strict=True))
        if parts[0].keys() == {"a", "b"}:
            a = jnp.concatenate([part["a"] for part in parts], axis=-1)
            scaled = [w * part["b"] for w, part in zip(weights, parts, strict=True)]
            return {"a": a, "b": jnp.concatenate(scaled, axis=1)}
        return {name: at([part[name] for part in parts]) for name in parts[0]}

    if count == 1:
        return lora, adapters[0]
    rank = lora.rank * count
    alpha = lora.scale * (math.sqrt(rank) if lora.use_rslora else rank)
    return LoRA(rank, alpha, lora.targets, lora.use_rslora, lora.base_dtype), at(adapters)


def freeze(lora: LoRA, params: Params) -> Params:
    """Return the base as it is held in training (`lora.base_dtype`)."""
    if lora.base_dtype is None:
        return params
    if lora.base_dtype == "int8":
        return quantize(params)
    return jax.tree.map(lambda leaf: jnp.asarray(on_device(leaf), lora.base_dtype), params)


def on_device(leaf: Any) -> Any:
    """Return a leaf that the host's memory may have, split over devices, in the memory of these."""
    if not _is_placed(leaf):
        return leaf
    return jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))


def frozen_axes(lora: LoRA, axes: Params) -> Params:
    """Return the logical axes of what `freeze` returns, from those of the parameters."""
    if lora.base_dtype != "int8":
        return axes

    def pair(spec: PartitionSpec, inputs: tuple[int, ...]) -> Int8:
        scale = (None if i in inputs else axis for i, axis in enumerate(spec))
        return Int8(spec, logical_spec(scale))  # type: ignore[arg-type]  # axes in place of arrays

    return _quantized(axes, pair)


def quantize(params: Params) -> Params:
    """Return the parameters with `Int8` in place of each matrix of the layers that `INPUTS` names.

    The scale of an output is the largest of its numbers over 127; rounding is to the nearest.
    """
    return _quantized(params, lambda leaf, inputs: _int8(on_device(leaf), inputs))


def _quantized(tree: Params, make: Callable[[Any, tuple[int, ...]], Int8]) -> Params:
    def at(node: Params) -> Params:
        made: Params = {}
        for name, child in node.items():
            if isinstance(child, dict):
                made[name] = at(child)
            elif name in INPUTS:
                first = 2 if _is_expert(node, name) else 1
                made[name] = make(child, tuple(range(first, first + INPUTS[name])))
            else:
                made[name] = child
        return made

    return at(tree)


@partial(jax.jit, static_argnames="inputs")
def _int8(stack: jax.Array, inputs: tuple[int, ...]) -> Int8:
    def layer(matrix: jax.Array) -> Int8:
        matrix = matrix.astype(jnp.float32)
        largest = jnp.abs(matrix).max([axis - 1 for axis in inputs], keepdims=True)
        scale = jnp.where(largest > 0, largest, 1.0) / 127.0
        return Int8(jnp.round(matrix / scale).astype(jnp.int8), scale)

    return jax.lax.map(layer, stack)
