"""Merging parameter trees in memory: a tree map of a method over their leaves."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax

from aya_jax.errors import AyaError, nearest
from aya_jax.merging.methods import METHODS, NEEDS_BASE, SUMS_TO_ONE, Settings


def checked_weights(
    count: int, method: str, weights: Sequence[float] | None, density: float, *, base: bool
) -> tuple[float, ...]:
    """Return one weight a model; raise `AyaError` where they or the settings do not fit the method.

    Args:
      count: of the models.
      method, weights, density: as in `merge_trees`.
      base: whether there is a base model.
    """
    if not count:
        raise AyaError("merge: there is no model to merge")
    if method not in METHODS:
        raise AyaError(f"merge: unknown method {method!r}{nearest(method, METHODS)}")
    if weights is not None and len(weights) != count:
        raise AyaError(f"merge: {len(weights)} weights for {count} models; give one for each")
    # Methods on differences from the base average them too by default.
    given = (1.0 / count,) * count if weights is None else weights
    shares = tuple(float(w) for w in given)
    if method in SUMS_TO_ONE and abs(sum(shares) - 1.0) > 1e-6:
        raise AyaError(
            f"merge: the weights of {method!r} sum to {sum(shares):g}; they must sum to 1"
        )
    if not 0.0 < density <= 1.0:
        raise AyaError(f"merge: density {density:g} must be above 0 and at most 1")
    if method in NEEDS_BASE and not base:
        raise AyaError(f"merge: method {method!r} needs a base model; give --base")
    return shares


def merge_trees(
    trees: Sequence[Any],
    *,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    base: Any = None,
    density: float = 0.5,
    seed: int = 0,
) -> Any:
    """Return the merge of parameter trees, leaf by leaf.

    Args:
      trees: parameters of models of one shape.
      method: a key of `methods.METHODS`.
      weights: one a tree; equal ones if absent. For `linear` and `slerp` they must sum to one.
      base: the tree that the models were trained from; the methods on differences need it.
      density: the share of entries that TIES and DARE keep.
      seed: of DARE; each leaf's key follows from the seed and its path.

    Raises:
      AyaError: an unknown method, weights that do not fit, trees of different shapes, or a missing
        base.
    """
    shares = checked_weights(len(trees), method, weights, density, base=base is not None)
    for other in [*trees[1:], *([base] if base is not None else [])]:
        require_same(trees[0], other)
    if len(trees) == 1 and method in SUMS_TO_ONE:
        return trees[0]

    def leaf(path: Any, first: jax.Array, *rest: jax.Array) -> jax.Array:
        models = [first, *rest] if base is None else [first, *rest[:-1]]
        start = None if base is None else rest[-1]
        return METHODS[method](models, start, Settings(shares, density, leaf_key(path, seed)))

    others = [*trees[1:], *([base] if base is not None else [])]
    return jax.tree_util.tree_map_with_path(leaf, trees[0], *others)


def leaf_key(path: Any, seed: int) -> jax.Array:
    """Return the key of a leaf, of jax's key path, for what DARE draws."""
    name = jax.tree_util.keystr(path)
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return jax.random.fold_in(jax.random.key(seed), number)


def require_same(a: Any, b: Any) -> None:
    """Raise `AyaError` unless two trees have leaves of the same shapes at the same paths."""

    def shapes(tree: Any) -> dict[str, Any]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in leaves
        }

    ours, theirs = shapes(a), shapes(b)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise AyaError(
                f"merge: the models differ at '{name}': {ours.get(name)} against {theirs.get(name)}"
            )
