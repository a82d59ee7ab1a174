"""Methods whose merged tensor is a combination of the models' tensors: they differ in its coefficients.

Where these depend on the tensors, it is only on how these lie to each other: on the matrix of their inner products.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.merging.methods.kinds import Block, Entries, Settings, Tensor

# Above this cosine two tensors are nearly parallel and SLERP is linear interpolation, as in mergekit.
PARALLEL = 0.9995
# A tensor whose norm is not above this is taken for zero, as is a sum of weights.
ZERO = 1e-8
# Weights that must sum to one may miss it by so much.
ROUNDING = 1e-6
# Inner products are summed over so many entries from a multiple of that number on, then exactly over all of these.
SEGMENT = 1 << 16


def linear(s: Settings, tensor: Tensor, seed: int, measured: None, block: Block) -> jax.Array:
    """`sum_i w_i theta_i` (Model Soups, arXiv 2203.05482), with `normalize` over `sum_i w_i`.

    The order of the models does not matter, to the last bit. A mean (no weight below 0, their sum 1) is never
    outside of what is averaged: equal models are themselves.
    """
    return combined(shares(s), None, tensor, block)


def shares(s: Settings) -> tuple[float, ...]:
    """Return the weights, with `normalize` over their sum."""
    total = math.fsum(s.weights)
    if not s.normalize or abs(total) < ZERO:
        return s.weights
    return tuple(weight / total for weight in s.weights)


def task_arithmetic(
    s: Settings, tensor: Tensor, seed: int, measured: None, block: Block
) -> jax.Array:
    """`base + lambda sum_i w_i (theta_i - base)` (arXiv 2212.04089, section 2)."""
    return combined(tuple(s.scale * weight for weight in shares(s)), 1.0, tensor, block)


def inner_products(s: Settings, tensor: Tensor, entries: Entries) -> np.ndarray:
    """Return float64 [M, M]: the inner products of the models' tensors, or of their differences from a base."""
    parts: dict[tuple[int, int], list[float]] = {}
    # What is left of a segment until the next block goes on with it.
    rest: list[np.ndarray] = []

    def add(segment: Sequence[np.ndarray]) -> None:
        for i, a in enumerate(segment):
            for j, b in enumerate(segment[: i + 1]):
                parts.setdefault((i, j), []).append(float(np.einsum("i,i->", a, b)))

    for block in entries.whole():
        for piece in block.cut(SEGMENT):
            values = [leaf.astype(np.float64) for leaf in piece.leaves]
            if piece.base is not None:
                values = [value - piece.base.astype(np.float64) for value in values]
            values = (
                [np.concatenate(pair) for pair in zip(rest, values, strict=True)]
                if rest
                else values
            )
            while len(values[0]) >= SEGMENT:
                add([value[:SEGMENT] for value in values])
                values = [value[SEGMENT:] for value in values]
            rest = values if len(values[0]) else []
    if rest:
        add(rest)
    count = len(s.weights)
    out = np.zeros((count, count))
    for (i, j), terms in parts.items():
        out[i, j] = out[j, i] = math.fsum(terms)
    return out


def between(
    a: int, b: int, t: float, products: np.ndarray, *, parallel: float
) -> tuple[float, float]:
    """Return the coefficients of SLERP from tensor `a` (t = 0) to tensor `b` (t = 1).

    `sin((1 - t) W) / sin(W)` and `sin(t W) / sin(W)`, with W the angle between them (Shoemake 1985, section 3.3);
    `1 - t` and `t` where the absolute value of its cosine is above `parallel`, or one tensor is zero.
    """
    norms = math.sqrt(products[a, a]), math.sqrt(products[b, b])
    if t in (0.0, 1.0) or min(norms) <= ZERO:
        return 1.0 - t, t
    cosine = min(1.0, max(-1.0, products[a, b] / (norms[0] * norms[1])))
    if abs(cosine) > parallel:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def slerp(s: Settings, tensor: Tensor, seed: int, products: np.ndarray, block: Block) -> jax.Array:
    """Spherical interpolation of two tensors of weights (1 - t, t); see `between`."""
    return combined(between(0, 1, shares(s)[1], products, parallel=PARALLEL), None, tensor, block)


def nuslerp(
    s: Settings, tensor: Tensor, seed: int, products: np.ndarray, block: Block
) -> jax.Array:
    """SLERP of two models of any weights, `t = w_2 / (w_1 + w_2)`; with a base, of the differences from it.

    As mergekit's of that name: linear only where the two are parallel to float32's precision.
    """
    total = math.fsum(s.weights)
    t = 0.5 if abs(total) < 1e-6 else s.weights[1] / total
    coefficients = between(0, 1, t, products, parallel=math.sqrt(1.0 - ZERO**2))
    return combined(coefficients, None if block.base is None else 1.0, tensor, block)


def karcher(
    s: Settings, tensor: Tensor, seed: int, products: np.ndarray, block: Block
) -> jax.Array:
    """The Karcher mean: SLERP of any number of models (Riemannian centre of mass, Karcher 1977).

    Of the tensors' directions u_i on the unit sphere the point m with `sum_i w_i log_m(u_i) = 0`, found by
    `m <- exp_m(sum_i w_i log_m(u_i))`; times the weighted mean of the norms.
    """
    norms = np.sqrt(np.diag(products))
    there = norms > s.tol
    weights = np.asarray(shares(s))
    if not there.any():
        return combined(shares(s), None, tensor, block)
    cosines = products / np.maximum(np.outer(norms, norms), np.finfo(float).tiny)
    alphas = np.where(there, weights, 0.0)
    alphas = alphas / alphas.sum()

    def length(direction: np.ndarray) -> float:
        return math.sqrt(max(0.0, float(direction @ cosines @ direction)))

    # Directions as coefficients of the u_i.
    mean = alphas if length(alphas) >= s.tol else np.eye(len(norms))[int(np.argmax(there))]
    mean = mean / length(mean)
    for _ in range(s.max_iter):
        tangent = np.zeros_like(mean)
        for alpha, unit, cosine in zip(alphas, np.eye(len(norms)), cosines @ mean, strict=True):
            angle = math.acos(min(1.0, max(-1.0, float(cosine))))
            if alpha and s.tol <= angle < math.pi:
                tangent += alpha * angle / math.sin(angle) * (unit - cosine * mean)
        size = length(tangent)
        if size < s.tol:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * tangent
        mean = mean / length(mean)
    size = float(weights @ norms)
    coefficients = tuple((size * mean / np.where(there, norms, 1.0) * there).tolist())
    return combined(coefficients, None, tensor, block)


def model_stock(
    s: Settings, tensor: Tensor, seed: int, products: np.ndarray, block: Block
) -> jax.Array:
    """`t mean_i(theta_i) + (1 - t) base` with `t = n cos / (1 + (n - 1) cos)` (arXiv 2403.19522, equation 5).

    cos is that of the angle between two models seen from the base, its mean over the pairs.
    """
    count = len(s.weights)
    norms = np.sqrt(np.diag(products))
    pairs = [
        min(1.0, max(-1.0, products[i, j] / max(norms[i] * norms[j], 1e-6)))
        for i in range(count)
        for j in range(i)
    ]
    cosine = math.fsum(pairs) / len(pairs)
    divisor = 1.0 + (count - 1) * cosine
    # Where the models pull in opposite directions there is no estimate, and the base stays.
    t = 0.0 if abs(divisor) < 1e-6 else count * cosine / divisor
    return combined((t / count,) * count, 1.0, tensor, block)


def combined(
    coefficients: tuple[float, ...], base: float | None, tensor: Tensor, block: Block
) -> jax.Array:
    """Return the sum of the models' entries by their coefficients, or of their differences from a base.

    Args:
      coefficients: one a model; one of 0 leaves its model out, whatever its entries are.
      base: None, or 1 where what is summed is differences, and the base comes on top.
      tensor: which it is.
      block: the entries.

    Returns:
      [n] in `tensor.dtype`, rounded once.
    """
    mean = min(coefficients) >= 0.0 and is_one(math.fsum(coefficients))
    kept = [(c, leaf) for c, leaf in zip(coefficients, block.leaves, strict=True) if c != 0.0]
    numbers = tuple(np.float32(c) for c, _ in kept)
    leaves = tuple(leaf for _, leaf in kept)
    if base is None:
        if not kept:
            return jnp.zeros(len(block.leaves[0]), tensor.dtype)
        if coefficients.count(0.0) == len(coefficients) - 1 and numbers[0] == 1.0:
            return jnp.asarray(leaves[0], tensor.dtype)
        return _weighted(numbers, leaves, mean=mean, dtype=tensor.dtype)
    assert block.base is not None
    return _differences(numbers, leaves, block.base, mean=mean, dtype=tensor.dtype)


def is_one(total: float) -> bool:
    """Whether weights of that sum make a mean."""
    return abs(total - 1.0) <= ROUNDING


@partial(jax.jit, static_argnames=("mean", "dtype"))
def _weighted(
    numbers: tuple[jax.Array, ...], leaves: tuple[jax.Array, ...], *, mean: bool, dtype: np.dtype
) -> jax.Array:
    values = [leaf.astype(jnp.float32) for leaf in leaves]
    total = _in_one_order([number * value for number, value in zip(numbers, values, strict=True)])
    return (within(total, values) if mean else total).astype(dtype)


def within(total: jax.Array, values: Sequence[jax.Array]) -> jax.Array:
    """Return the entries of a mean, moved to between the least and the greatest of what it is of."""
    lowest, highest = values[0], values[0]
    for value in values[1:]:
        lowest, highest = jnp.minimum(lowest, value), jnp.maximum(highest, value)
    return jnp.clip(total, lowest, highest)


def _in_one_order(terms: list[jax.Array]) -> jax.Array:
    """Return the sum of arrays, entry by entry from the least term to the greatest: in whatever order they come."""
    terms = list(terms)
    for turn in range(len(terms)):
        for i in range(turn % 2, len(terms) - 1, 2):
            a, b = terms[i], terms[i + 1]
            terms[i], terms[i + 1] = jnp.minimum(a, b), jnp.maximum(a, b)
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@partial(jax.jit, static_argnames=("mean", "dtype"))
def _differences(
    numbers: tuple[jax.Array, ...],
    leaves: tuple[jax.Array, ...],
    base: jax.Array,
    *,
    mean: bool,
    dtype: np.dtype,
) -> jax.Array:
    start = base.astype(jnp.float32)
    if not leaves:
        return start.astype(dtype)
    values = [leaf.astype(jnp.float32) for leaf in leaves]
    terms = [number * (value - start) for number, value in zip(numbers, values, strict=True)]
    total = start + _in_one_order(terms)
    return (within(total, values) if mean else total).astype(dtype)
