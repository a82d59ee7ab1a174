"""What all training jobs share: training, its curves, and the model directory that comes of it."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aya_jax.checkpoints.adapters import save_adapters
from aya_jax.checkpoints.model_directory import fill_model, write_object
from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.data.files import fingerprint
from aya_jax.data.records import Record, languages_of
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.merging.merge import average_into
from aya_jax.merging.methods.averages import running
from aya_jax.metrics import HISTORY, MetricWriter, read_rows
from aya_jax.model import Model
from aya_jax.models.decoder import Params
from aya_jax.models.lora import LoRA, average, merge
from aya_jax.recipe.job_settings import merge_checkpoints
from aya_jax.recipe.reference import REFERENCE
from aya_jax.recipe.rows import ROWS
from aya_jax.sharding.processes import by_lead, is_lead
from aya_jax.training.incidents import Describe, Incidents
from aya_jax.training.loop import train
from aya_jax.training.objectives import Objective
from aya_jax.training.optimizer import optimizer
from aya_jax.training.sinks import metric_sinks
from aya_jax.training.telemetry import telemetry
from aya_jax.training.work import RowWork, row_work

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
    reference: Params | None = None,
) -> dict[str, Any]:
    """Train, and turn the work folder into a model directory; return the last step's figures.

    The model is the average of the last checkpoints that `merge_checkpoints` asks for. With LoRA that is
    the average of what was learnt, merged into `start`, and the folder `adapter` has it in PEFT's
    format.
    """
    last, decay = merge_checkpoints()
    work.directory.mkdir(parents=True, exist_ok=True)
    with closing(TrainStore(work.directory / "checkpoints", keep=max(2, last))) as store:
        # `lineage.json` comes last: an attempt that was killed after it has left the model whole, and
        # of its checkpoints perhaps a part.
        if not by_lead((work.directory / "lineage.json").exists):
            config = objective.config.to_hf(reward=objective.reward_head)

            def describe_steps() -> None:
                # The checkpoints can so be merged before the training ends.
                tokenizer.save(work.directory)
                write_object(work.directory / "config.json", config)

            by_lead(describe_steps)
            _train(
                objective,
                start,
                arrays,
                data,
                tokenizer,
                store=store,
                work=work,
                lora=lora,
                reference=reference,
            )
            averaged = store.steps()[-last:]
            weights = running(len(averaged), decay)
            lineage = {
                "stage": work.stage,
                "kind": "train",
                "method": method,
                "parents": [_as_parent(parent)] if parent is not None else [],
                "data": [fingerprint(list(data))],
                "examples": len(data),
                "checkpoints": averaged,
            }
            if decay is not None:
                lineage["decay"] = decay
            if lora is None:
                paths = [store.path(step) for step in averaged]
                average_into(work.directory, paths, weights, objective.config, lineage=lineage)
            else:
                lineage["lora"] = asdict(lora)
                whole, adapters = average(
                    lora, [store.load_params(step) for step in averaged], weights
                )
                folder = work.directory / "adapter"
                by_lead(lambda: save_adapters(folder, objective.config, whole, adapters))
                params = merge(whole, start, adapters)
                fill_model(work.directory, config=config, params=params, lineage=lineage)

    def last_figures() -> dict[str, float]:
        for made_on_the_way in (
            store.directory,
            work.directory / ROWS,
            work.directory / REFERENCE,
        ):
            shutil.rmtree(made_on_the_way, ignore_errors=True)
        # From the file, which also has what a killed attempt wrote.
        return read_rows(work.directory / HISTORY)[-1]

    figures = by_lead(last_figures)
    shown = {name: figures[name] for name in SHOWN if name in figures}
    return {"steps": int(figures["step"]), **shown}


def _train(
    objective: Objective,
    start: Params,
    arrays: Mapping[str, np.ndarray],
    data: Sequence[Record] | Sequence[str],
    tokenizer: Tokenizer,
    *,
    store: TrainStore,
    work: Work,
    lora: LoRA | None,
    reference: Params | None,
) -> None:
    """Train from the newest checkpoint in `store`, and write the curves."""
    incidents = Incidents(work.directory / "incidents", describe=_texts(tokenizer, data))
    row = RowWork(*by_lead(lambda: row_work(objective, arrays, frozen=lora is not None)))
    # The events of a run are in RUN/metrics/STAGE.
    sink = metric_sinks(
        name=work.stage,
        group=work.events.parent.parent.name if work.events else "",
        directory=work.directory,
        resumed=store.latest_step() is not None,
    )
    curves = MetricWriter(work.directory, events=work.events, sink=sink) if is_lead() else None
    with (
        telemetry(row, directory=work.directory, events=work.events) as watch,
        curves or nullcontext(),
    ):

        def observe(step: int, values: Mapping[str, float]) -> None:
            kept = {name: v for name, v in values.items() if name not in ("total", "batch_size")}
            timing = watch.figures(step, rows=int(values["batch_size"]))
            if curves:
                curves.write(step, kept, timing=timing)
            shown = {name: kept[name] for name in SHOWN if name in kept}
            if "tokens_per_second" in timing:
                shown["tokens/s"] = timing["tokens_per_second"]
            work.update(step, int(values["total"]), shown)

        train(
            objective,
            start,
            arrays,
            store=store,
            incidents=incidents,
            observe=observe,
            telemetry=watch,
            lora=lora,
            reference=reference,
            optimizer=optimizer(),
            languages=languages_of(record for record in data if isinstance(record, dict)),
        )


def _texts(tokenizer: Tokenizer, data: Sequence[Record] | Sequence[str]) -> Describe:
    """Return what tells the texts of a batch, with the ids of the records that they may be of."""

    def describe(numbers: np.ndarray, batch: Mapping[str, np.ndarray]) -> Iterator[Record]:
        # A packed row does not tell whose answers it has; records with the same one are all named.
        by_answer: dict[str, list[Any]] = {}
        for record in data:
            if isinstance(record, dict) and "completion" in record:
                by_answer.setdefault(record["completion"], []).append(record.get("id"))
        for name in sorted(name for name in batch if name.endswith("tokens")):
            prefix = name.removesuffix("tokens")
            segments, mask = batch[f"{prefix}segment_ids"], batch.get(f"{prefix}mask")
            for i, number in enumerate(map(int, numbers)):
                for document in range(1, segments[i].max() + 1):
                    place = segments[i] == document
                    row = {
                        "row": number,
                        "array": name,
                        "text": tokenizer.decode(batch[name][i][place]),
                    }
                    if prefix in ("chosen_", "rejected_"):
                        row["ids"] = [data[number].get("id")]  # type: ignore[union-attr]
                    elif by_answer and mask is not None:
                        answer = tokenizer.decode(batch[name][i][place & mask[i]])
                        row["ids"] = by_answer.get(answer, [])
                    yield row

    return describe


def _as_parent(model: Model) -> dict[str, Any]:
    lineage = model.lineage
    return {
        "path": lineage.get("stage", "model"),
        "fingerprint": lineage.get("params_fingerprint"),
        "weight": None,
    }
