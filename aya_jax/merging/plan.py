"""What a merge will do, found out and checked before any of it is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from aya_jax.checkpoints.hugging_face import HEAD, by_leaf
from aya_jax.checkpoints.slices import Leaf
from aya_jax.checkpoints.store import RESERVE
from aya_jax.errors import AyaError
from aya_jax.merging.methods import METHODS, Settings, require_settings
from aya_jax.merging.outputs import FORMS, Output
from aya_jax.merging.reader import AHEAD, VOCABULARY, Rows
from aya_jax.merging.sources import Source, leaf_shape
from aya_jax.merging.stored import Work
from aya_jax.merging.trees import require_same
from aya_jax.merging.writer import UNDERWAY
from aya_jax.models.architecture import hf_tensors
from aya_jax.models.names import HFTensor

# What tells nothing of how a model computes: models that differ in these alone can be merged, and the first's count.
APART = frozenset(
    {"pad_token_id", "bos_token_id", "eos_token_id", "max_position_embeddings", "initializer_range"}
)
# How often a tensor that memory does not hold is read where the method measures it first.
PASSES = 2
# The settings of a tensor by its name, its layer (None outside of them) and how many layers its stack has.
SettingsOf = Callable[[str, int | None, int], Settings]


@dataclass(frozen=True)
class Plan:
    """What a merge reads, writes and needs; bytes.

    Attributes:
      tensors: how many.
      read: of models, from the disk: those that do not fit in memory count each time.
      written: the parameters.
      memory: of models and results at a time, beyond what the program itself takes.
      disk: what must be free.
    """

    tensors: int
    read: int
    written: int
    memory: int
    disk: int


def work_of(
    sources: Sequence[Source],
    base: Source | None,
    *,
    method: str,
    settings: SettingsOf,
    seed: int = 0,
    rows: Sequence[Rows] | None = None,
) -> Work:
    """Return what is to be merged.

    Args:
      sources: the models.
      base: what they were trained from; left out where the method has no use for it.
      method: a key of `methods.METHODS`.
      settings: see `SettingsOf`.
      seed: of what the method draws.
      rows: see `Work.rows`; without them the models have one vocabulary.

    Raises:
      AyaError: the models do not fit together, or the settings not the method.
    """
    if not sources:
        raise AyaError("merge: there is no model to merge")
    base = None if METHODS[method].needs_base is False else base
    models = [*sources, *([base] if base is not None else [])]
    own_rows = (None,) * len(models) if rows is None else tuple(rows)[: len(models)]
    sizes = {len(each) for each in own_rows if each is not None}
    for other in models[1:]:
        _require_same_model(models[0], other, vocabulary=not sizes)
    config, tensors = models[0].config, models[0].tensors
    if sizes:
        assert config is not None and len(sizes) == 1, "rows are of one vocabulary"
        config = replace(config, vocab_size=sizes.pop())
        tensors = hf_tensors(config, reward=models[0].reward)
    return Work(
        tuple(sources),
        base,
        method,
        settings_of(tensors, method, settings, base=base is not None),
        seed,
        config,
        tensors,
        own_rows,
    )


def _require_same_model(one: Source, other: Source, *, vocabulary: bool) -> None:
    """Raise `AyaError` unless two models compute alike, and have parameters of the same shapes."""
    if one.config is not None and other.config is not None:
        apart = APART if vocabulary else APART | {"vocab_size"}
        _require_same_config(one, other, apart)
    shapes = [
        {
            path: leaf.shape if vocabulary or path not in VOCABULARY else leaf.shape[1:]
            for path, leaf in source.leaves.items()
        }
        for source in (one, other)
    ]
    require_same(*shapes)


def _require_same_config(one: Source, other: Source, apart: frozenset[str]) -> None:
    assert one.config is not None
    names = [each.name for each in fields(one.config) if each.compare and each.name not in apart]
    for name in ["model_type", *names]:
        ours, theirs = (getattr(source.config, name, None) for source in (one, other))
        if ours != theirs:
            advice = "; give a policy for vocabularies" if name == "vocab_size" else ""
            raise AyaError(
                f"merge: {other.path} and {one.path} differ in config.json at '{name}': {theirs!r} "
                f"against {ours!r}{advice}"
            )


def settings_of(
    tensors: Sequence[HFTensor], method: str, settings: SettingsOf, *, base: bool
) -> dict[str, Settings]:
    """Return the settings of each tensor, by its name.

    Raises:
      AyaError: they do not fit the method.
    """
    layers = {tensor.leaf: tensor.index[0] + 1 for tensor in tensors if tensor.index}
    found = {}
    for tensor in tensors:
        layer = tensor.index[0] if tensor.index else None
        found[tensor.name] = settings(tensor.name, layer, layers.get(tensor.leaf, 1))
        try:
            require_settings(method, found[tensor.name], base=base)
        except AyaError as error:
            raise AyaError(f"{error} (for {tensor.name})") from None
    return found


def output_of(work: Work, directory: Path, *, form: str = "aya", dtype: Any = None) -> Output:
    """Return where a merge is written.

    Args:
      work: what is merged.
      directory: the folder.
      form: a key of `outputs.FORMS`.
      dtype: of the parameters, but for a scalar head; those of the first model if absent.
    """
    first = work.sources[0].leaves
    leaves = {}
    for path, members in by_leaf(work.tensors).items():
        kind = first[path].dtype if dtype is None or path == HEAD else np.dtype(dtype)
        leaves[path] = Leaf(kind, leaf_shape(members), len(members[0].index))
    return FORMS[form](directory, leaves, work.tensors)


def plan_of(work: Work, output: Output) -> Plan:
    """Return what a merge will read, write and need."""
    read = memory = 0
    tensors = [work.read_as(tensor, output) for tensor in work.tensors]
    for tensor in tensors:
        size = prod(tensor.part) * work.entry_bytes(tensor)
        read += PASSES * size if work.is_apart(tensor) else size
        part = max(each.stop - each.start for each in work.parts(tensor))
        memory = max(memory, part * work.entry_bytes(tensor))
    pieces = max(
        output.grain(tensor) * output.leaves[tensor.leaf].dtype.itemsize for tensor in tensors
    )
    total = sum(prod(each.part) * work.entry_bytes(each) for each in work.tensors)
    return Plan(
        tensors=len(work.tensors),
        read=read,
        written=output.nbytes,
        # Of parts in memory the next are read, and the pieces that are written are made C order at last.
        memory=min(total, max(AHEAD, 2 * memory)) + (UNDERWAY + 1) * pieces,
        disk=output.nbytes + RESERVE,
    )
