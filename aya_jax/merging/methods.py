"""Merge methods: pure functions on one leaf of each model, in float32, returned in its dtype.

Sources: linear (Model Soups, arXiv 2203.05482); SLERP (Shoemake 1985, as mergekit applies it);
task arithmetic (arXiv 2212.04089); TIES (arXiv 2306.01708); DARE (arXiv 2311.03099).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

# Above this cosine two tensors are nearly parallel and SLERP is linear interpolation.
PARALLEL = 0.9995


@dataclass(frozen=True)
class Settings:
    """What a method is given besides leaves: one weight a model, a density, and a key."""

    weights: tuple[float, ...]
    density: float
    key: jax.Array


def _float32(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    return [leaf.astype(jnp.float32) for leaf in leaves]


def linear(leaves: Sequence[jax.Array], base: jax.Array | None, s: Settings) -> jax.Array:
    """`sum_i w_i theta_i`; one model of weight 1 is itself, bit for bit."""
    del base
    total = sum(w * leaf for w, leaf in zip(s.weights, _float32(leaves), strict=True))
    return jnp.asarray(total).astype(leaves[0].dtype)


def _slerp_pair(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    flat_a, flat_b = a.ravel(), b.ravel()
    norm_a, norm_b = jnp.linalg.norm(flat_a), jnp.linalg.norm(flat_b)
    unit_a = jnp.where(norm_a > 1e-8, flat_a / jnp.maximum(norm_a, 1e-30), flat_a)
    unit_b = jnp.where(norm_b > 1e-8, flat_b / jnp.maximum(norm_b, 1e-30), flat_b)
    dot = jnp.clip(jnp.sum(unit_a * unit_b), -1.0, 1.0)
    angle = jnp.arccos(dot)
    sin = jnp.sin(angle)
    parallel = jnp.abs(dot) > PARALLEL
    safe = jnp.where(parallel, 1.0, sin)
    weight_a = jnp.where(parallel, 1.0 - t, jnp.sin((1.0 - t) * angle) / safe)
    weight_b = jnp.where(parallel, t, jnp.sin(t * angle) / safe)
    return weight_a * a + weight_b * b


def slerp(leaves: Sequence[jax.Array], base: jax.Array | None, s: Settings) -> jax.Array:
    """Spherical interpolation of whole tensors; more than two are folded in one after another.

    For two models of weights (1 - t, t): `sin((1-t) W)/sin(W) a + sin(t W)/sin(W) b` with W the
    angle between them. The i-th model joins the ones before it at its share of their weights.
    """
    del base
    merged, weight = leaves[0].astype(jnp.float32), s.weights[0]
    for leaf, w in zip(leaves[1:], s.weights[1:], strict=True):
        weight += w
        t = w / weight if weight else 0.0
        if t == 1.0:
            merged = leaf.astype(jnp.float32)
        elif t:
            merged = _slerp_pair(merged, leaf.astype(jnp.float32), t)
    return merged.astype(leaves[0].dtype)


def _deltas(leaves: Sequence[jax.Array], base: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    assert base is not None
    base32 = base.astype(jnp.float32)
    return base32, jnp.stack([leaf - base32 for leaf in _float32(leaves)])


def _weights(s: Settings, deltas: jax.Array) -> jax.Array:
    return jnp.asarray(s.weights, jnp.float32).reshape(-1, *(1,) * (deltas.ndim - 1))


def task_arithmetic(leaves: Sequence[jax.Array], base: jax.Array | None, s: Settings) -> jax.Array:
    """`base + sum_i w_i (theta_i - base)`."""
    base32, deltas = _deltas(leaves, base)
    return (base32 + (_weights(s, deltas) * deltas).sum(0)).astype(leaves[0].dtype)


def _trim(deltas: jax.Array, density: float) -> jax.Array:
    """Keep the `int(density * size)` largest magnitudes of each model's delta, as mergekit does."""
    flat = jnp.abs(deltas.reshape(deltas.shape[0], -1))
    keep = int(density * flat.shape[1])
    if keep >= flat.shape[1]:
        return deltas
    if keep == 0:
        return jnp.zeros_like(deltas)
    # By rank, not by threshold: of equal magnitudes only as many stay as there is room for.
    order = jnp.argsort(-flat, axis=1, stable=True)
    kept = jnp.zeros(flat.shape, bool).at[jnp.arange(len(flat))[:, None], order[:, :keep]].set(True)
    return jnp.where(kept.reshape(deltas.shape), deltas, 0.0)


def _elect_and_average(deltas: jax.Array, weights: jax.Array) -> jax.Array:
    """Elect each entry's sign by mass, then average the deltas that agree (disjoint mean)."""
    weighted = weights * deltas
    sign = jnp.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agree = jnp.sign(weighted) == sign
    divisor = (weights * agree).sum(0)
    return jnp.where(agree, weighted, 0.0).sum(0) / jnp.where(divisor == 0, 1.0, divisor)


def ties(leaves: Sequence[jax.Array], base: jax.Array | None, s: Settings) -> jax.Array:
    """TIES: trim each delta to its largest entries, elect signs, average what agrees.

    As in mergekit: trimmed tensor by tensor, the mean weighted, and scaled by one (the paper trims
    over the whole model and scales by lambda).
    """
    base32, deltas = _deltas(leaves, base)
    merged = _elect_and_average(_trim(deltas, s.density), _weights(s, deltas))
    return (base32 + merged).astype(leaves[0].dtype)


def _drop(deltas: jax.Array, s: Settings) -> jax.Array:
    """DARE: keep each entry with chance `density` and divide by it, so its mean stays."""
    kept = jax.random.bernoulli(s.key, s.density, deltas.shape)
    return jnp.where(kept, deltas / s.density, 0.0)


def dare_linear(leaves: Sequence[jax.Array], base: jax.Array | None, s: Settings) -> jax.Array:
    """DARE (drop and rescale by 1 / density), then task arithmetic."""
    base32, deltas = _deltas(leaves, base)
    return (base32 + (_weights(s, deltas) * _drop(deltas, s)).sum(0)).astype(leaves[0].dtype)


def dare_ties(leaves: Sequence[jax.Array], base: jax.Array | None, s: Settings) -> jax.Array:
    """DARE, then the sign election and disjoint mean of TIES."""
    base32, deltas = _deltas(leaves, base)
    merged = _elect_and_average(_drop(deltas, s), _weights(s, deltas))
    return (base32 + merged).astype(leaves[0].dtype)


Method = Callable[[Sequence[jax.Array], jax.Array | None, Settings], jax.Array]

METHODS: dict[str, Method] = {
    "linear": linear,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
}
NEEDS_BASE = frozenset({"task_arithmetic", "ties", "dare_linear", "dare_ties"})
# What an entry becomes follows from the models' entries at its place alone.
ELEMENTWISE = frozenset({"linear", "task_arithmetic"})
SUMS_TO_ONE = frozenset({"linear", "slerp"})
