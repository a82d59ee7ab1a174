"""Merging model directories, and an adapter into one."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gin

from aya_jax.checkpoints.adapters import load_adapters
from aya_jax.checkpoints.directories import shared_directory
from aya_jax.checkpoints.model_directory import (
    copy_tokenizer,
    describe_params,
    fill_model,
    load_config,
    load_lineage,
    open_params,
)
from aya_jax.errors import AyaError
from aya_jax.merging.stored import merge_stored
from aya_jax.merging.trees import checked_weights
from aya_jax.model import load
from aya_jax.models import lora
from aya_jax.sharding.processes import by_lead


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
    with shared_directory(out, replace=replace) as folder:
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

    No model is in memory as a whole; see `merge_stored`. All processes of a run call it.

    Arguments as in `merge_trees`, with directories in place of trees. The tokenizer is the first
    model's.

    Raises:
      AyaError: as `merge_trees`, or a directory that is missing, damaged, or of another config.
    """
    shares = checked_weights(len(paths), method, weights, density, base=base is not None)
    configs = [load_config(path) for path in paths]
    for path, config in zip(paths, configs, strict=True):
        different = [k for k in configs[0] if config.get(k) != configs[0][k]]
        if different:
            raise AyaError(
                f"merge: {path} and {paths[0]} differ in config.json at '{different[0]}': "
                f"{config.get(different[0])!r} against {configs[0][different[0]]!r}"
            )
    merge_stored(
        directory,
        "params",
        [open_params(path) for path in paths],
        method=method,
        weights=weights,
        base=open_params(base) if base is not None else None,
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
    by_lead(lambda: copy_tokenizer(paths[0], directory))
    describe_params(directory, config=configs[0], lineage=lineage)


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
    with shared_directory(out) as folder:
        by_lead(lambda: copy_tokenizer(path, folder))
        fill_model(
            folder,
            config=model.config.to_hf(reward=reward or model.is_reward_model),
            params=lora.merge(settings, base, adapters),
            lineage=lineage,
        )
    return Path(out)
