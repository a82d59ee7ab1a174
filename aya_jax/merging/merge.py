"""Merging whole models: a tree map of a method over parameters, or over model directories."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gin
import jax

from aya_jax.checkpoints.adapters import load_adapters
from aya_jax.checkpoints.model_directory import (
    copy_tokenizer,
    fill_model,
    load_config,
    load_lineage,
    load_params,
)
from aya_jax.data.files import atomic_directory
from aya_jax.errors import AyaError, nearest
from aya_jax.merging.methods import METHODS, NEEDS_BASE, SUMS_TO_ONE, Settings
from aya_jax.model import load
from aya_jax.models import lora


def _settings(count: int, method: str, weights: Sequence[float] | None) -> tuple[float, ...]:
    if method not in METHODS:
        raise AyaError(f"merge: unknown method {method!r}{nearest(method, METHODS)}")
    if weights is None:
        # Methods on differences from the base average them too by default.
        return (1.0 / count,) * count
    if len(weights) != count:
        raise AyaError(f"merge: {len(weights)} weights for {count} models; give one for each")
    if method in SUMS_TO_ONE and abs(sum(weights) - 1.0) > 1e-6:
        raise AyaError(
            f"merge: the weights of {method!r} sum to {sum(weights):g}; they must sum to 1"
        )
    return tuple(float(w) for w in weights)


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
    if not trees:
        raise AyaError("merge: there is no model to merge")
    shares = _settings(len(trees), method, weights)
    if not 0.0 < density <= 1.0:
        raise AyaError(f"merge: density {density:g} must be above 0 and at most 1")
    if method in NEEDS_BASE and base is None:
        raise AyaError(f"merge: method {method!r} needs a base model; give --base")
    for other in [*trees[1:], *([base] if base is not None else [])]:
        _check_same(trees[0], other)
    if len(trees) == 1 and method in SUMS_TO_ONE:
        return trees[0]

    def leaf(path: Any, first: jax.Array, *rest: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        key = jax.random.fold_in(jax.random.key(seed), number)
        models = [first, *rest] if base is None else [first, *rest[:-1]]
        start = None if base is None else rest[-1]
        return METHODS[method](models, start, Settings(shares, density, key))

    others = [*trees[1:], *([base] if base is not None else [])]
    return jax.tree_util.tree_map_with_path(leaf, trees[0], *others)


def _check_same(a: Any, b: Any) -> None:
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


def merge(
    paths: Sequence[str | Path], *, out: str | Path, replace: bool = False, **settings: Any
) -> Path:
    """Merge model directories into a new one at `out`, whole or not at all.

    Args:
      paths: the model directories.
      out: where; `replace` allows that something is there already.
      replace: see `out`.
      **settings: see `merge_into`.

    Raises:
      AyaError: see `merge_into`; or `out` exists or cannot be written.
    """
    with atomic_directory(out, replace=replace) as folder:
        merge_into(folder, paths, **settings)
    return Path(out)


@gin.configurable("merge", denylist=["directory", "paths", "base", "stage"])
def merge_into(
    directory: Path,
    paths: Sequence[str | Path],
    *,
    base: str | Path | None = None,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    seed: int = 0,
    stage: str = "merge",
) -> None:
    """Fill a folder, that the caller commits, with the merge of model directories and its lineage.

    Arguments as in `merge_trees`, with directories in place of trees. The tokenizer is the first
    model's.

    Raises:
      AyaError: as `merge_trees`, or a directory that is missing, damaged, or of another config.
    """
    if not paths:
        raise AyaError("merge: there is no model to merge")
    shares = _settings(len(paths), method, weights)
    configs = [load_config(path) for path in paths]
    for path, config in zip(paths, configs, strict=True):
        different = [k for k in configs[0] if config.get(k) != configs[0][k]]
        if different:
            raise AyaError(
                f"merge: {path} and {paths[0]} differ in config.json at '{different[0]}': "
                f"{config.get(different[0])!r} against {configs[0][different[0]]!r}"
            )
    merged = merge_trees(
        [load_params(path) for path in paths],
        method=method,
        weights=weights,
        base=load_params(base) if base is not None else None,
        density=density,
        seed=seed,
    )
    parents = [
        {
            "path": Path(path).name,
            "fingerprint": load_lineage(path)["params_fingerprint"],
            "weight": share,
        }
        for path, share in zip(paths, shares, strict=True)
    ]
    lineage = {"stage": stage, "kind": "merge", "method": method, "parents": parents}
    if base is not None:
        lineage["base"] = load_lineage(base)["params_fingerprint"]
    copy_tokenizer(paths[0], directory)
    fill_model(directory, config=configs[0], params=merged, lineage=lineage)


def merge_adapter(path: str | Path, adapter: str | Path, *, out: str | Path) -> Path:
    """Make a model directory of a model with a LoRA adapter of PEFT's merged into it, whole or not at all.

    Args:
      path: the model, ours or a Hugging Face directory; its parameters keep their dtypes.
      adapter: the folder of the adapter. One with a reward head makes a reward model.
      out: the model directory to make.

    Raises:
      AyaError: one of the two cannot be read, they do not belong together, or `out` exists or cannot
        be written.
    """
    model = load(path, on_host=True)
    settings, adapters = load_adapters(adapter, model.config)
    reward = lora.HEAD in adapters
    base = {name: leaf for name, leaf in model.params.items() if not (reward and name == "output")}
    lineage = {
        "stage": "merge",
        "kind": "merge",
        "method": "lora",
        "parents": [
            {
                "path": Path(path).name,
                "fingerprint": model.lineage.get("params_fingerprint"),
                "weight": None,
            }
        ],
        "lora": asdict(settings),
    }
    with atomic_directory(out) as folder:
        copy_tokenizer(path, folder)
        fill_model(
            folder,
            config=model.config.to_hf(reward=reward or model.is_reward_model),
            params=lora.merge(settings, base, adapters),
            lineage=lineage,
        )
    return Path(out)
