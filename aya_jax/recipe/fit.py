"""What all training jobs share: training, its curves, and the model directory that comes of it."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aya_jax.checkpoints.adapters import save_adapters
from aya_jax.checkpoints.model_directory import describe_params, fill_model
from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.data.files import fingerprint
from aya_jax.data.records import Record
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.merging.stored import merge_stored
from aya_jax.metrics import HISTORY, MetricWriter, read_rows
from aya_jax.model import Model
from aya_jax.models.decoder import Params
from aya_jax.models.lora import LoRA, average, merge
from aya_jax.recipe.job_settings import merge_checkpoints
from aya_jax.training.incidents import Describe, Incidents
from aya_jax.recipe.rows import ROWS
from aya_jax.training.loop import train
from aya_jax.training.objectives import Objective
from aya_jax.training.optimizer import optimizer

Update = Callable[[int, int, Mapping[str, float]], None]
SHOWN = ("loss", "rewards/accuracies", "rewards/margins")


def _silent(done: int, total: int, figures: Mapping[str, float]) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Work:
    """Where a job works, and whom it tells.

    Attributes:
      directory: becomes the model directory; a killed attempt's checkpoints are gone on from.
      stage: the name in the model's lineage.
      update: told the step, the number of steps and a few figures.
      events: the folder of the TensorBoard events, none if absent.
    """

    directory: Path
    stage: str
    update: Update = _silent
    events: Path | None = None


def fit(
    objective: Objective,
    start: Params,
    arrays: Mapping[str, np.ndarray],
    *,
    method: str,
    data: Sequence[Record] | Sequence[str],
    parent: Model | None,
    tokenizer: Tokenizer,
    work: Work,
    lora: LoRA | None = None,
) -> dict[str, Any]:
    """Train, and turn the work folder into a model directory; return the last step's figures.

    The model is the uniform average of the last `merge_checkpoints.last` checkpoints. With LoRA that is
    the average of what was learnt, merged into `start`, and the folder `adapter` has it in PEFT's
    format.
    """
    last = merge_checkpoints()
    work.directory.mkdir(parents=True, exist_ok=True)
    store = TrainStore(work.directory / "checkpoints", keep=max(2, last))
    # `lineage.json` comes last: an attempt that was killed after it has left the model whole, and of
    # its checkpoints perhaps a part.
    if not (work.directory / "lineage.json").exists():
        incidents = Incidents(work.directory / "incidents", describe=_texts(tokenizer, data))
        _train(objective, start, arrays, store=store, incidents=incidents, work=work, lora=lora)
        averaged = store.steps()[-last:]
        lineage = {
            "stage": work.stage,
            "kind": "train",
            "method": method,
            "parents": [_as_parent(parent)] if parent is not None else [],
            "data": [fingerprint(list(data))],
            "examples": len(data),
            "checkpoints": averaged,
        }
        tokenizer.save(work.directory)
        config = objective.config.to_hf(reward=objective.reward_head)
        if lora is None:
            parts = [store.open_params(step) for step in averaged]
            merge_stored(work.directory, "params", parts)
            describe_params(work.directory, config=config, lineage=lineage)
        else:
            lineage["lora"] = asdict(lora)
            whole, adapters = average(lora, [store.load_params(step) for step in averaged])
            save_adapters(work.directory / "adapter", objective.config, whole, adapters)
            params = merge(whole, start, adapters)
            fill_model(work.directory, config=config, params=params, lineage=lineage)
    for made_on_the_way in (store.directory, work.directory / ROWS):
        shutil.rmtree(made_on_the_way, ignore_errors=True)
    # From the file, which also has what a killed attempt wrote.
    figures = read_rows(work.directory / HISTORY)[-1]
    shown = {name: figures[name] for name in SHOWN if name in figures}
    return {"steps": int(figures["step"]), **shown}


def _train(
    objective: Objective,
    start: Params,
    arrays: Mapping[str, np.ndarray],
    *,
    store: TrainStore,
    incidents: Incidents,
    work: Work,
    lora: LoRA | None,
) -> None:
    """Train from the newest checkpoint in `store`, and write the curves."""
    lengths_of_row = [a.shape[1] for name, a in arrays.items() if name.endswith("tokens")]
    done = store.latest_step() or 0
    clock = (done, time.monotonic())
    with MetricWriter(work.directory, resume_step=done, events=work.events) as metrics:

        def observe(step: int, values: Mapping[str, float]) -> None:
            nonlocal clock
            kept = {name: v for name, v in values.items() if name not in ("total", "batch_size")}
            rows, now = (step - clock[0]) * values["batch_size"], time.monotonic()
            speed = rows * sum(lengths_of_row) / max(now - clock[1], 1e-9)
            clock = (step, now)
            metrics.write(step, kept, timing={"tokens_per_second": speed})
            shown = {name: kept[name] for name in SHOWN if name in kept}
            work.update(step, int(values["total"]), {**shown, "tokens/s": speed})

        train(
            objective,
            start,
            arrays,
            store=store,
            incidents=incidents,
            observe=observe,
            lora=lora,
            optimizer=optimizer(),
        )


def _texts(tokenizer: Tokenizer, data: Sequence[Record] | Sequence[str]) -> Describe:
    """Return what tells the texts of a batch, with their records' ids where a row is a pair."""

    def describe(numbers: np.ndarray, batch: Mapping[str, np.ndarray]) -> Iterator[Record]:
        for name in sorted(name for name in batch if name.endswith("tokens")):
            segments = batch[f"{name.removesuffix('tokens')}segment_ids"]
            for number, ids, owner in zip(numbers, batch[name], segments, strict=True):
                for document in range(1, owner.max() + 1):
                    text = tokenizer.decode(ids[owner == document])
                    row = {"row": int(number), "array": name, "text": text}
                    # A row of packed text has parts of many records, in the order of their lengths.
                    if name.startswith(("chosen", "rejected")):
                        row["id"] = data[number].get("id")
                    yield row

    return describe


def _as_parent(model: Model) -> dict[str, Any]:
    lineage = model.lineage
    return {
        "path": lineage.get("stage", "model"),
        "fingerprint": lineage.get("params_fingerprint"),
        "weight": None,
    }
