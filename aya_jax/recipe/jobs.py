"""One job a training verb: records and a model in, a model directory out. Stages and verbs share them.

The memory of a model that a job starts from is given back: it cannot be used afterwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aya_jax.arbitrage.arbiter import score
from aya_jax.data.examples import packed, padded_pairs, text_examples, tokenize_all
from aya_jax.data.files import fingerprint
from aya_jax.data.mixture import mixture
from aya_jax.data.records import Record
from aya_jax.data.seq2seq import packed_seq2seq
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError
from aya_jax.evaluation.bootstrap import Figure, summarise
from aya_jax.model import Model, load, param_shardings
from aya_jax.models.architecture import require_decoder
from aya_jax.models.config import decoder_config
from aya_jax.models.decoder import init_params
from aya_jax.models.t5_config import T5Config
from aya_jax.recipe.fit import Work, fit
from aya_jax.recipe.job_settings import (
    activations,
    dpo_objective,
    lengths,
    lora_settings,
    new_model,
    reward_objective,
)
from aya_jax.recipe.reference import reference_logprobs
from aya_jax.recipe.rows import kept_rows
from aya_jax.sharding.place import gin_place
from aya_jax.sharding.programs import free
from aya_jax.training.objectives import SFT


def load_start(path: str | Path, *, reward: bool | None = None) -> Model:
    """Load the model that a training starts from; `reward` as in `load`.

    It is split over the mesh that gin describes. Where LoRA trains on a base of another dtype, the
    model itself is left in the memory of the hosts: the devices have only room for the base.

    Raises:
      AyaError: see `model.load` and `lora_settings`.
    """
    lora = lora_settings()
    on_host = lora is not None and lora.base_dtype is not None
    return load(path, reward=reward, on_host=on_host, place=gin_place())


def _made_of(
    data: Sequence[Record] | Sequence[str], tokenizer: Tokenizer, **settings: Any
) -> dict[str, Any]:
    """Return what the rows of a training follow from."""
    files = {name: fingerprint(content.hex()) for name, content in tokenizer.files.items()}
    return {"data": fingerprint(list(data)), "tokenizer": files, **settings}


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
    length = lengths()[0]

    def make() -> Iterable[Mapping[str, np.ndarray]]:
        examples = text_examples(lines, tokenizer, length=length)
        return (rows._asdict() for rows in packed(examples, length=length))

    arrays = kept_rows(work.directory, _made_of(lines, tokenizer, length=length), make)
    # Each device makes its own part.
    fresh = jax.jit(
        partial(init_params, config), out_shardings=param_shardings(config, gin_place())
    )
    start = fresh(jax.random.key(new_model()))
    figures = fit(
        SFT(config, **activations()),
        start,
        arrays,
        method="pretrain",
        data=lines,
        parent=None,
        tokenizer=tokenizer,
        work=work,
    )
    return {"rows": len(arrays["tokens"]), **figures}


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
    config, tokenizer = model.config, model.tokenizer
    limit = min(lengths()[0], config.max_position_embeddings)
    records = mixture(records)

    def make() -> Iterable[Mapping[str, np.ndarray]]:
        examples = tokenize_all(records, tokenizer, field="completion", max_length=limit)
        if isinstance(config, T5Config):
            start_id = config.decoder_start_token_id
            return packed_seq2seq(examples, length=limit, start_id=start_id)
        return (rows._asdict() for rows in packed(examples, length=limit))

    arrays = kept_rows(work.directory, _made_of(records, tokenizer, length=limit), make)
    figures = fit(
        SFT(config, **activations()),
        model.params,
        arrays,
        method="sft",
        data=records,
        parent=model,
        tokenizer=tokenizer,
        work=work,
        lora=lora_settings(),
    )
    return {"examples": len(records), **figures}


def _pairs(
    model: Model, pairs: Sequence[Record], work: Work
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the rows of pairs, and what they follow from."""
    limit, multiple = lengths()
    limit = min(limit, model.config.max_position_embeddings)
    if not pairs:
        raise AyaError("there is no preference pair to train on; every prompt's answers are equal")

    def make() -> Iterable[Mapping[str, np.ndarray]]:
        sides = (
            tokenize_all(pairs, model.tokenizer, field=field, max_length=limit)
            for field in ("chosen", "rejected")
        )
        return padded_pairs(*sides, multiple=multiple, max_length=limit)

    made_of = _made_of(pairs, model.tokenizer, max_length=limit, multiple=multiple)
    return kept_rows(work.directory, made_of, make), made_of


def dpo(
    model: Model,
    pairs: Sequence[Record],
    *,
    work: Work,
    reference: Model | None = None,
) -> dict[str, Any]:
    """Preference-train on `prompt`, `chosen` and `rejected`.

    The log-probabilities of the reference are computed once, before training, unless
    `dpo_objective.reference` has it held.

    Args:
      model: a language model, where training starts.
      pairs: with `chosen` and `rejected`.
      work: see `Work`.
      reference: what the policy is held to; the model itself if absent. Its memory is given back: it
        cannot be used afterwards.

    Returns:
      `pairs`, `steps` and the last figures.

    Raises:
      AyaError: the model is no decoder, there is no pair, or one is too long; see
        `training.loop.train` for more.
    """
    config = require_decoder(model.config, "DPO")
    pairs, objective = mixture(pairs), dpo_objective(config)
    arrays, made_of = _pairs(model, pairs, work)
    reference = reference or model
    if not objective.held_reference:
        kept = reference_logprobs(reference, arrays, work.directory, made_of, dtype=objective.dtype)
        arrays |= kept
        if reference is not model:
            free(reference.params)
    figures = fit(
        objective,
        model.params,
        arrays,
        method="dpo",
        data=pairs,
        parent=model,
        tokenizer=model.tokenizer,
        work=work,
        lora=lora_settings(),
        reference=reference.params if objective.held_reference else None,
    )
    return {"pairs": len(pairs), **figures}


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
    pairs, start = mixture(pairs), dict(model.params)
    if not model.is_reward_model:
        # The scalar head takes the place of one over the vocabulary.
        free(start.pop("output", None))
        head = param_shardings(config, model.place or gin_place(), reward_head=True)["score"]
        start["score"] = jax.device_put(np.zeros(config.hidden_size, np.float32), head)
    figures = fit(
        reward_objective(config),
        start,
        _pairs(model, pairs, work)[0],
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
