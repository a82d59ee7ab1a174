"""Merging model directories, and an adapter into one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aya_jax.checkpoints.adapters import load_adapters
from aya_jax.checkpoints.directories import resumed_directory, shared_directory
from aya_jax.checkpoints.model_directory import (
    copy_tokenizer,
    describe_model,
    fill_model,
)
from aya_jax.data.files import atomic_write
from aya_jax.errors import AyaError
from aya_jax.merging.methods import Settings
from aya_jax.merging.outputs import Output
from aya_jax.merging.plan import output_of, plan_of, work_of
from aya_jax.merging.settings import MergeConfig, merge_config
from aya_jax.merging.sources import Source, open_source
from aya_jax.merging.stored import Work, merge_stored
from aya_jax.merging.told import told
from aya_jax.merging.vocabulary import Vocabulary, merged_vocabulary
from aya_jax.model import load
from aya_jax.models import lora
from aya_jax.models.architecture import ModelConfig
from aya_jax.sharding.processes import by_lead


def merge(
    models: Sequence[str | Path] | MergeConfig,
    *,
    out: str | Path,
    **settings: Any,
) -> Path:
    """Merge models into a new directory at `out`, whole or not at all; one that was killed is gone on from.

    Args:
      models: the model directories; or the whole of what is asked for.
      out: where.
      **settings: see `settings.merge_config`.

    Raises:
      AyaError: see `settings.merge_config` and `merge_into`; or `out` exists or cannot be written.
    """
    config = models if isinstance(models, MergeConfig) else merge_config(models=models, **settings)
    with resumed_directory(out) as folder:
        merge_into(folder, config, once=True)
    return Path(out)


def merge_into(
    directory: Path, config: MergeConfig, *, stage: str = "merge", once: bool = False
) -> None:
    """Fill a folder, that the caller commits, with the merge of models and its lineage.

    No model is in memory as a whole; see `merge_stored`. All processes of a run call it. What a killed
    attempt at the same merge has left in the folder is gone on from.

    Args:
      directory: the folder.
      config: what is asked for.
      stage: the name in the lineage.
      once: whether the models are read for this alone, and not soon again.

    Raises:
      AyaError: the models do not fit together, or the settings not the method; a file is missing or
        damaged; the disk is full.
    """
    with opened(config, once=once) as (work, vocabulary):
        output = output_of(work, directory, form=config.form, dtype=config.dtype)
        by_lead(lambda: _write_files(directory, vocabulary.files))
        _fill(directory, work, output, _lineage(config, work, stage))


def describe(config: MergeConfig) -> str:
    """Return what a merge would do, for people: models, settings, tensors, and bytes read, written and held.

    Raises:
      AyaError: as `merge_into`, before anything is written.
    """
    with opened(config) as (work, vocabulary):
        output = output_of(work, Path("."), form=config.form, dtype=config.dtype)
        return told(config, work, vocabulary, plan_of(work, output))


@contextmanager
def opened(config: MergeConfig, *, once: bool = False) -> Iterator[tuple[Work, Vocabulary]]:
    """Open the models of a merge and find out all that must fit together; close them at the end.

    For `once` see `merge_into`.

    Raises:
      AyaError: something does not.
    """
    with ExitStack() as stack:

        def enter(path: str) -> Source:
            return stack.enter_context(open_source(path, once=once))

        models = [enter(path) for path in config.models]
        base = enter(config.base) if config.base else None
        for model in models:
            if model.config is None:
                raise AyaError(
                    f"{model.path}: has no config.json; put the model's and its tokenizer there, or, of a "
                    "step, into the folder of its training"
                )
        vocabulary = merged_vocabulary(config, models, base)
        work = work_of(
            models,
            base,
            method=config.method,
            settings=config.settings,
            seed=config.seed,
            rows=vocabulary.rows,
        )
        yield work, vocabulary


def _write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        atomic_write(directory / name, content)


def _lineage(config: MergeConfig, work: Work, stage: str) -> dict[str, Any]:
    """Return what is told of a merge; a weight that is not the same for all tensors is null."""
    each = list(work.settings.values())
    weights = [
        settings[0] if len(set(settings)) == 1 else None
        for settings in zip(*(settings.weights for settings in each), strict=True)
    ]
    lineage: dict[str, Any] = {
        "stage": stage,
        "kind": "merge",
        "method": config.method,
        "parents": [
            {
                "path": Path(path).name,
                "fingerprint": model.lineage.get("params_fingerprint"),
                "weight": weight,
            }
            for path, model, weight in zip(config.models, work.sources, weights, strict=True)
        ],
    }
    if work.base is not None:
        lineage["base"] = work.base.lineage.get("params_fingerprint")
    return lineage


def average_into(
    directory: Path,
    paths: Sequence[Path],
    weights: tuple[float, ...],
    config: ModelConfig,
    *,
    lineage: Mapping[str, Any],
) -> None:
    """Fill a folder, but for a tokenizer, with the weighted average of steps of a training.

    Raises:
      AyaError: as `merge_into`.
    """
    settings = Settings(weights)
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
