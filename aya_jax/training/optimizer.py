"""AdamW with global-norm clipping, and the learning-rate schedules."""

import math
from dataclasses import dataclass

import jax
import optax

from aya_jax.errors import AyaError, nearest

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class AdamW:
    """AdamW (arXiv 1711.05101) after clipping by global norm; norms' weights are not decayed."""

    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def transform(self) -> optax.GradientTransformation:
        """Return the transformation without its learning rate, which the step is given.

        So one compiled step serves every learning rate and schedule.
        """

        def decayed(params: optax.Params) -> optax.Params:
            return jax.tree_util.tree_map_with_path(
                lambda path, _: not jax.tree_util.keystr(path).endswith("norm']['weight']"), params
            )

        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.scale_by_adam(b1=self.b1, b2=self.b2),
            optax.add_decayed_weights(self.weight_decay, mask=decayed),
        )


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
