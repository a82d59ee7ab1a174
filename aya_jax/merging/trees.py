"""Merging parameter trees in memory: what `stored` makes on the disk, of small models and for tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.checkpoints.slices import LeafPath, nested
from aya_jax.errors import AyaError
from aya_jax.merging.methods import Settings, Tensor, merge_tensor
from aya_jax.models.names import HFTensor, whole


def merge_trees(
    trees: Sequence[Any],
    settings: Settings | Mapping[str, Settings],
    *,
    method: str = "linear",
    base: Any = None,
    seed: int = 0,
    tensors: Sequence[HFTensor] | None = None,
) -> Any:
    """Return the merge of parameter trees, nested dicts of arrays in the dtypes of the first.

    Args:
      trees: parameters of models of one shape.
      settings: the method's, of all tensors or of each by its name.
      method: a key of `methods.METHODS`.
      base: the tree that the models were trained from; the methods on differences need it.
      seed: of what a method draws.
      tensors: of the model; if absent each leaf is one, and its path its name.

    Raises:
      AyaError: trees of different shapes.
    """
    flat = [_leaves(tree) for tree in (*trees, *([] if base is None else [base]))]
    for other in flat[1:]:
        require_same(
            {path: leaf.shape for path, leaf in flat[0].items()},
            {path: leaf.shape for path, leaf in other.items()},
        )
    if tensors is None:
        tensors = [whole("/".join(path), path, leaf.shape) for path, leaf in flat[0].items()]
    out = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in flat[0].items()}
    for tensor in tensors:
        leaves = [each[tensor.leaf][tensor.index] for each in flat]
        merged = merge_tensor(
            method,
            settings if isinstance(settings, Settings) else settings[tensor.name],
            Tensor(tensor.name, tensor.shape, tensor.transpose),
            leaves[: len(trees)],
            leaves[-1] if base is not None else None,
            seed=seed,
        )
        out[tensor.leaf][tensor.index] = merged.astype(out[tensor.leaf].dtype)
    return jax.tree.map(jnp.asarray, nested(out))


def _leaves(tree: Any) -> dict[LeafPath, np.ndarray]:
    return {
        tuple(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def require_same(
    ours: Mapping[LeafPath, tuple[int, ...]], theirs: Mapping[LeafPath, tuple[int, ...]]
) -> None:
    """Raise `AyaError` unless two models have leaves of the same shapes at the same paths."""
    for path in sorted(ours.keys() | theirs.keys()):
        if ours.get(path) != theirs.get(path):
            raise AyaError(
                f"merge: the models differ at '{'/'.join(path)}': {ours.get(path)} against "
                f"{theirs.get(path)}"
            )
