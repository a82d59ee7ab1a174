"""Merging model directories, and an adapter into one."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gin

from aya_jax.checkpoints.adapters import load_adapters
from aya_jax.checkpoints.directories import resumed_directory, shared_directory
from aya_jax.checkpoints.model_directory import (
    copy_tokenizer,
    describe_model,
    fill_model,
)
from aya_jax.errors import AyaError
from aya_jax.merging.methods import Settings, method_of
from aya_jax.merging.methods.averages import uniform
from aya_jax.merging.outputs import Output
from aya_jax.merging.plan import output_of, work_of
from aya_jax.merging.sources import open_source
from aya_jax.merging.stored import Work, merge_stored
from aya_jax.model import load
from aya_jax.models import lora
from aya_jax.models.architecture import ModelConfig
from aya_jax.sharding.processes import by_lead


def merge(
    paths: Sequence[str | Path], *, out: str | Path, replace: bool = False, **settings: Any
) -> Path:
    """Merge models into a new directory at `out`, whole or not at all; one that was killed is gone on from.

    Args:
      paths: the model directories.
      out: where; `replace` allows that something is there already.
      replace: see `out`.
      **settings: see `merge_into`.

    Raises:
      AyaError: see `merge_into`; or `out` exists or cannot be written.
    """
    with resumed_directory(out, replace=replace) as folder:
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
    dtype: str | None = None,
    form: str = "aya",
    stage: str = "merge",
) -> None:
    """Fill a folder, that the caller commits, with the merge of models and its lineage.

    No model is in memory as a whole; see `merge_stored`. All processes of a run call it. What a killed
    attempt at the same merge has left in the folder is gone on from.

    Args:
      directory: the folder.
      paths: the models: directories of ours or of Hugging Face, or steps of a training's checkpoints.
      base: what they were trained from; the methods on differences need it.
      method: a key of `methods.METHODS`.
      weights: one a model; equal ones if absent.
      density: the share of entries that TIES and DARE keep.
      seed: of what a method draws.
      dtype: of the parameters; those of the first model if absent.
      form: `aya`, or `hugging_face` for a directory of that kind.
      stage: the name in the lineage.

    Raises:
      AyaError: the models do not fit together, or the settings not the method; a file is missing or
        damaged; the disk is full.
    """
    count = len(paths)
    if weights is not None and len(weights) != count:
        raise AyaError(f"merge: {len(weights)} weights for {count} models; give one for each")
    shares = tuple(weights) if weights is not None else (1.0 / max(1, count),) * count
    settings = Settings(shares, density=(density,) * count, normalize=method_of(method).normalize)
    with ExitStack() as stack:
        models = [stack.enter_context(open_source(path)) for path in paths]
        start = stack.enter_context(open_source(base)) if base is not None else None
        work = work_of(models, start, method=method, settings=lambda *_: settings, seed=seed)
        output = output_of(work, directory, form=form, dtype=dtype)
        lineage = {
            "stage": stage,
            "kind": "merge",
            "method": method,
            "parents": [
                {
                    "path": Path(path).name,
                    "fingerprint": model.lineage.get("params_fingerprint"),
                    "weight": share,
                }
                for path, model, share in zip(paths, models, shares, strict=True)
            ],
        }
        if start is not None:
            lineage["base"] = start.lineage.get("params_fingerprint")
        by_lead(lambda: copy_tokenizer(models[0].path, directory))
        _fill(directory, work, output, lineage)


def average_into(
    directory: Path,
    paths: Sequence[Path],
    config: ModelConfig,
    *,
    lineage: Mapping[str, Any],
) -> None:
    """Fill a folder, but for a tokenizer, with the uniform average of steps of a training.

    Raises:
      AyaError: as `merge_into`.
    """
    settings = Settings(uniform(len(paths)))
    with ExitStack() as stack:
        models = [stack.enter_context(open_source(path, config)) for path in paths]
        work = work_of(models, None, method="linear", settings=lambda *_: settings)
        _fill(directory, work, output_of(work, directory), lineage)


def _fill(directory: Path, work: Work, output: Output, lineage: Mapping[str, Any]) -> None:
    """Write parameters, `config.json` and `lineage.json`, which comes last."""
    assert work.config is not None, "a model has a configuration"
    checksums = merge_stored(work, output)
    told = output.config(work.config, reward=work.sources[0].reward)
    by_lead(lambda: describe_model(directory, config=told, lineage=lineage, checksums=checksums))


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
