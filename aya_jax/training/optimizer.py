"""AdamW and Adafactor after clipping by global norm, and the learning-rate schedules."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import gin
import jax
import jax.numpy as jnp
import optax

from aya_jax.errors import AyaError, nearest
from aya_jax.models.fields import require_dtype

SCHEDULES = ("cosine", "linear", "constant")


class Optimizer(Hashable, Protocol):
    """What turns gradients into updates; equal ones share one compiled step."""

    def transform(self) -> optax.GradientTransformation:
        """Return the transformation without its learning rate, which the step is given.

        So one compiled step serves every learning rate and schedule.
        """


@dataclass(frozen=True)
class AdamW:
    """AdamW (arXiv 1711.05101); norms' weights are not decayed.

    Its state is two numbers a parameter, of `moment_dtype`.
    """

    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    moment_dtype: str = "float32"

    def transform(self) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            _kept_in(self.moment_dtype, optax.scale_by_adam(b1=self.b1, b2=self.b2)),
            optax.add_decayed_weights(self.weight_decay, mask=_decayed),
        )


@dataclass(frozen=True)
class Adafactor:
    """Adafactor (arXiv 1804.04235) without momentum; norms' weights are not decayed.

    Its state is a number a row and a number a column of each matrix. The second moment decays as
    `1 - step^-0.8` (section 7.2), and the update of a leaf is clipped to a root mean square of 1 (section
    6). Learning rates are not scaled by the parameters' size: they mean what they do for AdamW.
    """

    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def transform(self) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.scale_by_factored_rms(decay_rate=0.8),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(self.weight_decay, mask=_decayed),
        )


@gin.configurable
def optimizer(
    *,
    name: str = "adamw",
    b1: float = 0.9,
    b2: float = 0.95,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    moment_dtype: str = "float32",
) -> Optimizer:
    """Return the optimizer of a training.

    Args:
      name: `adamw` or `adafactor`.
      b1, b2: decay of AdamW's two moments.
      weight_decay: share of a parameter that a step of learning rate 1 takes away; norms are spared.
      clip_norm: largest norm of the whole gradient.
      moment_dtype: of AdamW's moments between steps, `float32` or `bfloat16`.

    Raises:
      AyaError: an unknown name or dtype.
    """
    require_dtype("optimizer.moment_dtype", moment_dtype)
    if name == "adamw":
        return AdamW(b1, b2, weight_decay, clip_norm, moment_dtype)
    if name == "adafactor":
        return Adafactor(weight_decay, clip_norm)
    raise AyaError(f"optimizer.name: unknown {name!r}{nearest(name, ('adamw', 'adafactor'))}")


def _decayed(params: optax.Params) -> optax.Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not jax.tree_util.keystr(path).endswith("norm']['weight']"), params
    )


def _kept_in(dtype: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return a transformation that computes in float32 and keeps its state in `dtype`."""
    if dtype == "float32":
        return inner

    def cast(state: Any, dtype: Any) -> Any:
        return jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
        )

    def init(params: optax.Params) -> Any:
        return cast(inner.init(params), dtype)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        updates, state = inner.update(grads, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def learning_rate_at(
    step: int, *, peak: float, steps: int, warmup: float, schedule: str, final: float
) -> float:
    """Return the learning rate of `step` (from 0) of `steps`.

    Linear warm-up over the share `warmup` of the steps, then `schedule` from `peak` to
    `final * peak`.

    Raises:
      AyaError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise AyaError(
            f"train.schedule: unknown schedule {schedule!r}{nearest(schedule, SCHEDULES)}"
        )
    rise = math.ceil(warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    progress = (step - rise) / max(steps - rise, 1)
    if schedule == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        share = 1.0 - progress if schedule == "linear" else 1.0
    return peak * (final + (1.0 - final) * share)
