"""Merges of the same models, one after the other: each is looked at and dropped."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.checkpoints.directories import resumed_directory
from aya_jax.checkpoints.slices import nested
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError
from aya_jax.merging.merge import merge_into, opened
from aya_jax.merging.plan import settings_of
from aya_jax.merging.search import Point
from aya_jax.merging.settings import MergeConfig, Slice
from aya_jax.merging.sources import Source
from aya_jax.merging.trees import merge_trees
from aya_jax.model import Model, inference, load_inference
from aya_jax.sharding.place import inference_place
from aya_jax.sharding.processes import by_lead

# Bytes of all models together up to which they are held in memory, and merged there.
IN_MEMORY = 2 << 30
TRIAL = "trial"


def merge_at(config: MergeConfig, point: Point) -> MergeConfig:
    """Return a merge of the same models with other weights and settings."""
    (asked,) = config.slices
    own = tuple({"weight": weight} for weight in point.weights)
    there = replace(config, slices=(Slice(shared={**asked.shared, **point.settings}, own=own),))
    there.check()
    return there


class Merger:
    """Merges of the models of one configuration, in memory where they are small, else on the disk.

    Attributes:
      fingerprints: of the models and the base, equal while their files are.
    """

    def __init__(self, config: MergeConfig, folder: Path) -> None:
        """Open the models.

        Args:
          config: the models, their base and the method.
          folder: where a merge of large models lies while it is looked at.

        Raises:
          AyaError: they do not fit together, or are reward models.
        """
        self._config, self._place = config, folder / TRIAL
        self._trees: list[Any] | None = None
        with opened(config) as (work, _):
            if work.sources[0].reward:
                raise AyaError(f"{config.models[0]}: is a reward model; give language models")
            # Of its models only their number is asked for when they are closed.
            self._work = work
            self.fingerprints = [source.fingerprint for source in work.models]
            size = sum(leaf.nbytes for source in work.models for leaf in source.leaves.values())
            same = all(rows is None for rows in work.rows) and config.dtype is None
            if same and size <= IN_MEMORY:
                self._trees = [_tree(source) for source in work.models]

    @contextmanager
    def merged(self, point: Point) -> Iterator[Model]:
        """Yield a merge, ready to sample and to score; it has gone when the block ends.

        Raises:
          AyaError: the settings do not fit the method, or the disk is full.
        """
        config = replace(merge_at(self._config, point), form="aya")
        if self._trees is not None:
            yield self._in_memory(config, self._trees)
            return
        try:
            with resumed_directory(self._place, replace=True) as folder:
                merge_into(folder, config)
            yield load_inference(self._place, reward=False)
        finally:
            by_lead(self.clear)

    def clear(self) -> None:
        """Remove what is left of a merge on the disk."""
        for left in (self._place, *self._place.parent.glob(f".{TRIAL}.*")):
            shutil.rmtree(left, ignore_errors=True)

    def _in_memory(self, config: MergeConfig, trees: list[Any]) -> Model:
        work, has_base = self._work, self._work.base is not None
        assert work.config is not None
        params = merge_trees(
            trees[: len(work.sources)],
            settings_of(work.tensors, config.method, config.settings, base=has_base),
            method=config.method,
            base=trees[-1] if has_base else None,
            seed=config.seed,
            tensors=work.tensors,
        )
        dtype = None if inference() is None else jnp.dtype(inference())
        # In the host's memory, from where each process takes what its devices hold.
        params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)
        tokenizer = Tokenizer.load(Path(config.models[0]))
        return Model(work.config, params, tokenizer, {}, inference_place()).on_devices()


def _tree(source: Source) -> Mapping[str, Any]:
    """Return the parameters of a model, as NumPy arrays."""
    leaves = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in source.leaves.items()}
    for tensor in source.tensors:
        entries = source.read(tensor)
        leaves[tensor.leaf][tensor.index] = entries.reshape(tensor.part)
    return nested(leaves)
