"""The merge of trees on the disk: block by block, by one process or by several together."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from jax.tree_util import DictKey

from aya_jax.checkpoints.leaves import Index, blocks, shared_out
from aya_jax.checkpoints.slices import Leaf, LeafPath, nested, write_slices
from aya_jax.merging.methods import ELEMENTWISE, METHODS, SUMS_TO_ONE, Settings
from aya_jax.merging.trees import checked_weights, leaf_key, require_same

Stored = Mapping[LeafPath, ts.TensorStore]


def merge_stored(
    directory: Path,
    name: str,
    trees: Sequence[Stored],
    *,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    base: Stored | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> None:
    """Write the merge of trees on the disk as `directory/name`: the bits that `merge_trees` gives.

    No tree is ever in memory. Several processes share the work out between them. Each holds, of every
    tree and of the result, one block of at most `leaves.BLOCK` bytes; of a method that is not
    `ELEMENTWISE` one whole leaf.

    Args:
      directory, name: as in `write_tree`.
      trees: as `open_slices` returns.
      method, weights, density, seed: as in `merge_trees`.
      base: as `trees`; the methods on differences need it.

    Raises:
      AyaError: as `merge_trees` and `write_tree`.
    """
    shares = checked_weights(len(trees), method, weights, density, base=base is not None)
    sources = [*trees, *([base] if base is not None else [])]
    for other in sources[1:]:
        require_same(nested(trees[0]), nested(other))
    plan = {path: _planned(leaf) for path, leaf in trees[0].items()}
    work: dict[tuple[LeafPath, int], Index] = {}
    for path, leaf in plan.items():
        whole: Index = tuple(slice(0, size) for size in leaf.shape)
        parts = (
            blocks(leaf.shape, leaf.chunks, leaf.dtype.itemsize)
            if method in ELEMENTWISE
            else [whole]
        )
        work |= {(path, number): part for number, part in enumerate(parts)}
    sizes = {key: prod(each.stop - each.start for each in part) for key, part in work.items()}
    with write_slices(directory, name, plan) as stores:
        for path, number in shared_out(sizes)[jax.process_index()]:
            part = work[path, number]
            reads = [source[path][part].read() for source in sources]
            if len(trees) == 1 and method in SUMS_TO_ONE:
                merged = reads[0].result()
            else:
                leaves = [jnp.asarray(read.result()) for read in reads]
                key = leaf_key(tuple(map(DictKey, path)), seed)
                start = None if base is None else leaves.pop()
                settings = Settings(shares, density, key)
                merged = np.asarray(METHODS[method](leaves, start, settings))
            stores[path][part].write(merged).result()


def _planned(leaf: ts.TensorStore) -> Leaf:
    # What has three axes or more is a stack of the layers' matrices.
    shape = tuple(leaf.shape)
    return Leaf(leaf.dtype.numpy_dtype, shape, 1 if len(shape) > 2 else 0)
