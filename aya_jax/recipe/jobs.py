"""One job a training verb: records and a model in, a model directory out. Stages and verbs share them."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.arbitrage.arbiter import score
from aya_jax.checkpoints.adapters import save_adapters
from aya_jax.checkpoints.model_directory import fill_model
from aya_jax.checkpoints.train_store import TrainStore
from aya_jax.data.examples import Rows, pack, pad, pad_length, text_rows, tokenize
from aya_jax.data.files import fingerprint
from aya_jax.data.records import Record
from aya_jax.data.seq2seq import pack_seq2seq
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError
from aya_jax.evaluation.bootstrap import Figure, summarise
from aya_jax.merging.merge import merge_trees
from aya_jax.metrics import HISTORY, MetricWriter, read_rows
from aya_jax.model import Model, load
from aya_jax.models.architecture import require_decoder
from aya_jax.models.config import DecoderConfig, decoder_config
from aya_jax.models.decoder import Batch, Params, init_params
from aya_jax.models.heads import target_logprobs
from aya_jax.models.lora import INPUTS, LoRA, average, merge
from aya_jax.models.t5_config import T5Config
from aya_jax.training.loop import train
from aya_jax.training.objectives import DPO, SFT, Objective, Reward

Update = Callable[[int, int, Mapping[str, float]], None]
SHOWN = ("loss", "rewards/accuracies", "rewards/margins")


@gin.configurable
def lengths(*, max_length: int = 1024, multiple: int = 64) -> tuple[int, int]:
    """Return the longest example in tokens, and what padded lengths are a multiple of.

    Args:
      max_length: of prompt and completion together, and the length of packed rows, for an
        encoder-decoder on either side; the model's context is the limit where that is shorter.
      multiple: rows of pairs are padded to a multiple of this many tokens, so that few programs are
        compiled.
    """
    return max_length, multiple


@gin.configurable
def merge_checkpoints(*, last: int = 1) -> int:
    """Return how many of a run's last checkpoints its model is the uniform average of.

    Raises:
      AyaError: `last` is below 1.
    """
    if last < 1:
        raise AyaError(f"merge_checkpoints.last is {last}; it must be at least 1")
    return last


@gin.configurable
def new_model(*, seed: int = 0) -> int:
    """Return the seed of fresh parameters."""
    return seed


@gin.configurable("lora")
def lora_settings(
    *,
    rank: int = 0,
    alpha: float = 16.0,
    targets: Sequence[str] = tuple(INPUTS),
    use_rslora: bool = False,
    base_dtype: str | None = None,
) -> LoRA | None:
    """Return what a training trains on top of its model, None where it trains the model itself.

    Args:
      rank: of the adapters; 0 is none.
      alpha, targets, use_rslora, base_dtype: see `models.lora.LoRA`.

    Raises:
      AyaError: a setting is not one of those that there are.
    """
    return LoRA(rank, alpha, tuple(targets), use_rslora, base_dtype) if rank else None


def load_start(path: str | Path, *, reward: bool | None = None) -> Model:
    """Load the model that a training starts from; `reward` as in `load`.

    Where LoRA trains on a base of another dtype, the model itself is left in the host's memory, as
    NumPy arrays: the device has only room for the base.

    Raises:
      AyaError: see `model.load` and `lora_settings`.
    """
    lora = lora_settings()
    on_host = lora is not None and lora.base_dtype is not None
    return load(path, reward=reward, on_host=on_host)


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


def _fit(
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
        _train(objective, start, arrays, store=store, work=work, lora=lora)
        averaged = store.steps()[-last:]
        trees = [store.load_params(step) for step in averaged]
        lineage = {
            "stage": work.stage,
            "kind": "train",
            "method": method,
            "parents": [_as_parent(parent)] if parent is not None else [],
            "data": [fingerprint(list(data))],
            "examples": len(data),
            "checkpoints": averaged,
        }
        if lora is None:
            params = merge_trees(trees)
        else:
            lineage["lora"] = asdict(lora)
            whole, adapters = average(lora, trees)
            save_adapters(work.directory / "adapter", objective.config, whole, adapters)
            params = merge(whole, start, adapters)
        tokenizer.save(work.directory)
        fill_model(
            work.directory,
            config=objective.config.to_hf(reward=objective.reward_head),
            params=params,
            lineage=lineage,
        )
    shutil.rmtree(store.directory, ignore_errors=True)
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

        train(objective, start, arrays, store=store, observe=observe, lora=lora)


def _as_parent(model: Model) -> dict[str, Any]:
    lineage = model.lineage
    return {
        "path": lineage.get("stage", "model"),
        "fingerprint": lineage.get("params_fingerprint"),
        "weight": None,
    }


def _row_arrays(rows: Rows, prefix: str = "") -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": array for name, array in rows._asdict().items()}


def pretrain(
    lines: Sequence[str],
    tokenizer: Tokenizer,
    *,
    work: Work,
) -> dict[str, Any]:
    """Train a fresh decoder (`decoder_config`) on plain text; fill `work` with the model.

    Args:
      lines: each one is a document; longer ones are cut to the row.
      tokenizer: its size and special tokens replace those of the configuration.
      work: see `Work`.

    Returns:
      `rows`, `steps` and the last figures.

    Raises:
      AyaError: see `training.loop.train`.
    """
    config = replace(
        decoder_config(),
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_id,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    rows = text_rows(lines, tokenizer, length=lengths()[0])
    start = init_params(config, jax.random.key(new_model()))
    figures = _fit(
        SFT(config),
        start,
        _row_arrays(rows),
        method="pretrain",
        data=lines,
        parent=None,
        tokenizer=tokenizer,
        work=work,
    )
    return {"rows": len(rows.tokens), **figures}


def sft(
    model: Model,
    records: Sequence[Record],
    *,
    work: Work,
) -> dict[str, Any]:
    """Fine-tune on `prompt` and `completion`, loss on completion tokens, packed rows.

    Args:
      model: a language model, where training starts.
      records: with `completion`.
      work: see `Work`.

    Returns:
      `examples`, `steps` and the last figures.

    Raises:
      AyaError: a record is longer than `lengths.max_length` or the context, or there is none; see
        `training.loop.train` for more.
    """
    config = model.config
    limit = min(lengths()[0], config.max_position_embeddings)
    examples = [tokenize(r, model.tokenizer, field="completion", max_length=limit) for r in records]
    if isinstance(config, T5Config):
        start_id = config.decoder_start_token_id
        arrays = pack_seq2seq(examples, length=limit, start_id=start_id)
    else:
        arrays = _row_arrays(pack(examples, length=limit))
    figures = _fit(
        SFT(config),
        model.params,
        arrays,
        method="sft",
        data=records,
        parent=model,
        tokenizer=model.tokenizer,
        work=work,
        lora=lora_settings(),
    )
    return {"examples": len(records), **figures}


def _pair_arrays(model: Model, pairs: Sequence[Record]) -> dict[str, np.ndarray]:
    limit, multiple = lengths()
    limit = min(limit, model.config.max_position_embeddings)
    if not pairs:
        raise AyaError("there is no preference pair to train on; every prompt's answers are equal")
    sides = {
        field: [tokenize(r, model.tokenizer, field=field, max_length=limit) for r in pairs]
        for field in ("chosen", "rejected")
    }
    width = pad_length([*sides["chosen"], *sides["rejected"]], multiple=multiple, max_length=limit)
    arrays: dict[str, np.ndarray] = {}
    for field, examples in sides.items():
        arrays.update(_row_arrays(pad(examples, length=width), f"{field}_"))
    return arrays


@partial(jax.jit, static_argnames="config")
def _sequence_logprobs(
    config: DecoderConfig, params: Params, batch: Batch, mask: jax.Array
) -> jax.Array:
    return target_logprobs(config, params, batch, mask).sum(-1)


def sequence_logprobs(model: Model, rows: Rows, *, batch_size: int = 32) -> np.ndarray:
    """Return float32 [R]: the summed log-probability of each row's completion under `model`.

    Args:
      model: a language model.
      rows: arrays [R, T]; the tokens under `mask` are summed.
      batch_size: rows worked out together; the last batch is filled up.
    """
    config = require_decoder(model.config, "DPO")
    out, params = [], jax.device_put(model.params)
    for start in range(0, len(rows.tokens), batch_size):
        part = [array[start : start + batch_size] for array in rows]
        short = batch_size - len(part[0])
        tokens, positions, segments, mask = (np.pad(x, ((0, short), (0, 0))) for x in part)
        batch = Batch(*map(jnp.asarray, (tokens, positions, segments)))
        values = _sequence_logprobs(config, params, batch, jnp.asarray(mask))
        out.append(np.asarray(values)[: batch_size - short])
    return np.concatenate(out)


@gin.configurable
def dpo_objective(
    config: DecoderConfig,
    *,
    beta: float = 0.1,
    variant: str = "sigmoid",
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
) -> DPO:
    """Return DPO's objective with the settings of its stage.

    Args:
      config: the decoder.
      beta, variant, label_smoothing: see `losses.dpo.dpo_loss`.
      sft_weight: see `training.objectives.DPO`.
    """
    return DPO(config, beta, variant, label_smoothing, sft_weight)


def dpo(
    model: Model,
    pairs: Sequence[Record],
    *,
    work: Work,
    reference: Model | None = None,
) -> dict[str, Any]:
    """Preference-train on `prompt`, `chosen` and `rejected`.

    The log-probabilities of the reference are computed once, before training.

    Args:
      model: a language model, where training starts.
      pairs: with `chosen` and `rejected`.
      work: see `Work`.
      reference: what the policy is held to; the model itself if absent.

    Returns:
      `pairs`, `steps` and the last figures.

    Raises:
      AyaError: the model is no decoder, there is no pair, or one is too long; see
        `training.loop.train` for more.
    """
    config = require_decoder(model.config, "DPO")
    arrays = _pair_arrays(model, pairs)
    reference = reference or model
    for field in ("chosen", "rejected"):
        rows = Rows(*(arrays[f"{field}_{name}"] for name in Rows._fields))
        arrays[f"reference_{field}"] = sequence_logprobs(reference, rows)
    figures = _fit(
        dpo_objective(config),
        model.params,
        arrays,
        method="dpo",
        data=pairs,
        parent=model,
        tokenizer=model.tokenizer,
        work=work,
        lora=lora_settings(),
    )
    return {"pairs": len(pairs), **figures}


@gin.configurable
def reward_objective(
    config: DecoderConfig, *, center_coefficient: float = 0.01, sft_weight: float = 0.0
) -> Reward:
    """Return the objective of a reward model.

    Args:
      config: the decoder.
      center_coefficient: see `losses.reward.bradley_terry_loss`.
      sft_weight: see `training.objectives.Reward`.

    Raises:
      AyaError: `sft_weight` asks for likelihoods of a model whose output embedding is its own, which
        a reward model does not keep.
    """
    if sft_weight and not config.tie_word_embeddings:
        raise AyaError(
            "reward_objective.sft_weight needs a model with tied embeddings, and this one's "
            "config.json says tie_word_embeddings false; set it to 0"
        )
    return Reward(config, center_coefficient, sft_weight)


def reward(
    model: Model,
    pairs: Sequence[Record],
    *,
    work: Work,
) -> dict[str, Any]:
    """Train a reward model by Bradley-Terry: the decoder of `model` with a scalar head.

    Args:
      model: a language model, which gets a head of zeros, or a reward model, which is trained on.
      pairs: with `chosen` and `rejected`.
      work: see `Work`.

    Returns:
      `pairs`, `steps` and the last figures.

    Raises:
      AyaError: the model is no decoder, there is no pair, or one is too long; see
        `training.loop.train` for more.
    """
    config = require_decoder(model.config, "a reward model")
    start = dict(model.params)
    if not model.is_reward_model:
        # The scalar head takes the place of one over the vocabulary.
        start.pop("output", None)
        start["score"] = jnp.zeros(config.hidden_size, jnp.float32)
    figures = _fit(
        reward_objective(config),
        start,
        _pair_arrays(model, pairs),
        method="reward",
        data=pairs,
        parent=model,
        tokenizer=model.tokenizer,
        work=work,
        lora=lora_settings(),
    )
    return {"pairs": len(pairs), **figures}


def pair_accuracy(model: Model, pairs: Sequence[Record]) -> Figure:
    """Return how often a reward model prefers the chosen completion, over all and by language.

    A tie counts as a miss.
    """
    chosen = score(model, pairs, [pair["chosen"] for pair in pairs])
    rejected = score(model, pairs, [pair["rejected"] for pair in pairs])
    languages = [pair.get("language", "und") for pair in pairs]
    return summarise((chosen > rejected).astype(float).tolist(), languages)
