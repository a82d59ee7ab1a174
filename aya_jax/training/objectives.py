"""What a step minimises: a batch and parameters in, a `Total` out.

Objectives are frozen dataclasses, so that equal ones share one compiled step.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from aya_jax.losses.dpo import dpo_loss
from aya_jax.losses.reward import bradley_terry_loss
from aya_jax.losses.sft import sft_loss
from aya_jax.losses.total import Total
from aya_jax.models import t5
from aya_jax.models.architecture import ModelConfig
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import Batch, Params, hidden_states
from aya_jax.models.heads import logprobs_of_hidden, rewards_of_hidden, target_logprobs
from aya_jax.models.t5_config import T5Config

Arrays = dict[str, jax.Array]


class Objective(Hashable, Protocol):
    """A loss over a batch. `reward_head` tells which parameters it needs."""

    @property
    def config(self) -> ModelConfig:
        """The model that is trained."""
        ...

    @property
    def reward_head(self) -> bool:
        """Whether the parameters have a scalar head."""
        ...

    @property
    def held_reference(self) -> bool:
        """Whether a step is given a second model, which `reference` asks."""
        ...

    def reference(self, params: Params, batch: Arrays) -> Arrays:
        """Return the columns of the batch that the second model gives."""
        ...

    def __call__(self, params: Params, batch: Arrays) -> Total:
        """Return the summed loss, the count and the metrics of the batch."""
        ...


class _Alone:
    """An objective that holds its model to no other."""

    held_reference = False

    def reference(self, params: Params, batch: Arrays) -> Arrays:
        """See `Objective`."""
        return {}


@dataclass(frozen=True)
class SFT(_Alone):
    """Negative log-likelihood of completion tokens in packed rows."""

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    reward_head: bool = False

    def __call__(self, params: Params, batch: Arrays) -> Total:
        """`batch`: tokens, positions, segment_ids and languages int32 [B, T] and mask bool [B, T].

        For an encoder-decoder those are the completions, and there are input_tokens, input_positions
        and input_segment_ids int32 [B, S] of the prompts.
        """
        rows, mask = _rows(batch), batch["mask"]
        options: dict[str, Any] = {"dtype": self.dtype, "remat": self.remat}
        if isinstance(self.config, T5Config):
            inputs = _rows(batch, "input_")
            hidden = t5.hidden_states(self.config, params, inputs, rows, **options)
            logprobs = logprobs_of_hidden(self.config, params, hidden, rows.tokens, mask)
        else:
            logprobs = target_logprobs(self.config, params, rows, mask, **options)
        return sft_loss(logprobs, mask, batch.get("languages"))


def _rows(batch: Arrays, prefix: str = "") -> Batch:
    return Batch(*(batch[f"{prefix}{name}"] for name in Batch._fields))


def _pairs(batch: Arrays) -> tuple[Batch, jax.Array]:
    """Return rows [2P, T], each chosen one before its rejected one, and their completion mask.

    So a pair stays on the device that has it.
    """

    def stack(name: str) -> jax.Array:
        pair = jnp.stack([batch[f"chosen_{name}"], batch[f"rejected_{name}"]], axis=1)
        return pair.reshape(-1, *pair.shape[2:])

    return Batch(stack("tokens"), stack("positions"), stack("segment_ids")), stack("mask")


@dataclass(frozen=True)
class DPO:
    """Preference optimisation against a reference: log-probabilities kept with the data, or a held model.

    A held reference lies on the devices beside the policy, split as it is, and its forward pass is part of each
    step; with the log-probabilities kept there is neither.
    """

    config: DecoderConfig
    beta: float
    variant: str = "sigmoid"
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"
    held_reference: bool = False
    reward_head: bool = False

    def reference(self, params: Params, batch: Arrays) -> Arrays:
        """Return float32 [P] `reference_chosen` and `reference_rejected` of a held reference.

        `batch`: chosen_* and rejected_* rows [P, T].
        """
        chosen, rejected = self._logprobs(params, batch)
        return {"reference_chosen": chosen, "reference_rejected": rejected}

    def _logprobs(self, params: Params, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """Return float32 [P] twice: the summed log-probabilities of chosen and of rejected completions."""
        rows, mask = _pairs(batch)
        each = target_logprobs(self.config, params, rows, mask, dtype=self.dtype, remat=self.remat)
        chosen, rejected = each.sum(-1).reshape(-1, 2).T
        return chosen, rejected

    def __call__(self, params: Params, batch: Arrays) -> Total:
        """`batch`: chosen_* and rejected_* rows [P, T], reference_chosen, _rejected and languages [P].

        `sft_weight` adds the mean negative log-likelihood of each chosen completion
        (RPO, arXiv 2404.19733, equation 1), which keeps its likelihood from falling.
        """
        chosen, rejected = self._logprobs(params, batch)
        total = dpo_loss(
            chosen,
            rejected,
            batch["reference_chosen"],
            batch["reference_rejected"],
            beta=self.beta,
            variant=self.variant,
            label_smoothing=self.label_smoothing,
            languages=batch.get("languages"),
        )
        nll = (-chosen / jnp.maximum(batch["chosen_mask"].sum(-1), 1)).sum()
        loss = total.loss + self.sft_weight * nll
        metrics = {**total.metrics, "loss": (loss, total.count), "nll_loss": (nll, total.count)}
        return Total(loss, total.count, metrics)


@dataclass(frozen=True)
class Reward(_Alone):
    """Bradley-Terry on pairs, for the decoder with a scalar head."""

    config: DecoderConfig
    center_coefficient: float = 0.0
    sft_weight: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"
    reward_head: bool = True

    def __call__(self, params: Params, batch: Arrays) -> Total:
        """`batch`: chosen_* and rejected_* rows [P, T], languages [P].

        `sft_weight` adds the mean negative log-likelihood of each chosen completion, so that the
        decoder keeps what it knows (text-generation regularisation, arXiv 2406.10216, equation 5).
        """
        rows, _ = _pairs(batch)
        hidden = hidden_states(self.config, params, rows, dtype=self.dtype, remat=self.remat)
        each = rewards_of_hidden(params, hidden, rows.segment_ids)
        chosen, rejected = each.reshape(-1, 2).T
        total = bradley_terry_loss(
            chosen,
            rejected,
            center_coefficient=self.center_coefficient,
            languages=batch.get("languages"),
        )
        if not self.sft_weight:
            return total
        learnt = batch["chosen_mask"]
        logprobs = logprobs_of_hidden(
            self.config,
            params,
            hidden.reshape(-1, 2, *hidden.shape[1:])[:, 0],
            batch["chosen_tokens"],
            learnt,
        )
        nll = (-logprobs.sum(-1) / jnp.maximum(learnt.sum(-1), 1)).sum()
        loss = total.loss + self.sft_weight * nll
        metrics = {**total.metrics, "loss": (loss, total.count), "nll_loss": (nll, total.count)}
        return Total(loss, total.count, metrics)
