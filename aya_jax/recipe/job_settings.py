"""The settings of a training job that gin gives, beside those of the loop and the optimizer."""

from collections.abc import Sequence
from typing import Any

import gin
import jax.numpy as jnp

from aya_jax.errors import AyaError, nearest
from aya_jax.models.config import DecoderConfig
from aya_jax.models.fields import require_dtype
from aya_jax.models.lora import INPUTS, LoRA
from aya_jax.models.remat import POLICIES
from aya_jax.training.objectives import DPO, Reward

# Where DPO gets the log-probabilities that it holds its policy to.
REFERENCES = ("precomputed", "held")


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
def merge_checkpoints(*, last: int = 1, decay: float | None = None) -> tuple[int, float | None]:
    """Return what running average of its last checkpoints a run's model is: `last` and `decay`.

    Args:
      last: how many.
      decay: of an exponential moving average over them, above 0 and below 1; a plain mean if absent.

    Raises:
      AyaError: they are out of range.
    """
    if last < 1:
        raise AyaError(f"merge_checkpoints.last is {last}; it must be at least 1")
    if decay is not None and not 0.0 < decay < 1.0:
        raise AyaError(
            f"merge_checkpoints.decay is {decay}; it must be above 0 and below 1, or None"
        )
    return last, decay


@gin.configurable
def new_model(*, seed: int = 0) -> int:
    """Return the seed of fresh parameters."""
    return seed


@gin.configurable
def activations(*, dtype: str = "float32", remat: str = "none") -> dict[str, Any]:
    """Return how a training computes: the `dtype` and `remat` of its objective.

    Args:
      dtype: of activations, `float32` or `bfloat16`; parameters stay float32.
      remat: what is kept for the backward pass, a key of `models.remat.POLICIES`.

    Raises:
      AyaError: an unknown dtype or policy.
    """
    require_dtype("activations.dtype", dtype)
    if remat not in POLICIES:
        raise AyaError(f"activations.remat: unknown {remat!r}{nearest(remat, POLICIES)}")
    return {"dtype": jnp.dtype(dtype), "remat": remat}


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


@gin.configurable
def dpo_objective(
    config: DecoderConfig,
    *,
    beta: float = 0.1,
    variant: str = "sigmoid",
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
    reference: str = "precomputed",
) -> DPO:
    """Return DPO's objective with the settings of its stage.

    Args:
      config: the decoder.
      beta, variant, label_smoothing: see `losses.dpo.dpo_loss`.
      sft_weight: see `training.objectives.DPO`.
      reference: `precomputed`, its log-probabilities worked out once, before training, and kept with the
        data; or `held`, the model itself on the devices, asked at each step.

    Raises:
      AyaError: an unknown `reference`.
    """
    if reference not in REFERENCES:
        raise AyaError(
            f"dpo_objective.reference: unknown {reference!r}{nearest(reference, REFERENCES)}"
        )
    return DPO(
        config,
        beta,
        variant,
        label_smoothing,
        sft_weight,
        held_reference=reference == "held",
        **activations(),
    )


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
    return Reward(config, center_coefficient, sft_weight, **activations())
