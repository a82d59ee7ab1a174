"""Bad steps: a loss that is no number, or a spike. They change nothing; what comes of them is a policy."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp

from aya_jax.errors import AyaError, nearest

log = logging.getLogger(__name__)

POLICIES = ("stop", "skip")
# Losses that a new one is compared with, and how many there must be before one can be a spike.
WINDOW, ENOUGH = 64, 32
# The standard deviation of normal numbers over the median of their distances from their median.
NORMAL = 1.4826
# No spread is taken for less than this share of the median: equal losses have none.
LEAST_SPREAD = 0.01


class Seen(NamedTuple):
    """What a `Guard` remembers; it is part of the train state, so that a resume judges the same.

    Attributes:
      losses: float32 [WINDOW], of the last steps by their number; infinite where there was
        no number (a NaN would stop a run that looks for them, JAX_DEBUG_NANS).
      skipped: int32 [], the bad steps so far.
    """

    losses: jax.Array
    skipped: jax.Array


@dataclass(frozen=True)
class Guard:
    """Tells bad steps, on the device and within the step.

    A step is bad where its loss or its gradient's norm is not finite. It is also bad where `spike` is
    given and the loss lies more than `spike` robust standard deviations above the median of the
    finite losses of the last `WINDOW` steps, of which there must be `ENOUGH`. The robust standard
    deviation is 1.4826 times the median distance from the median (Hampel 1974), at least a hundredth
    of the median's size. Losses that were spikes count among the last ones, so that a level that
    stays is no spike for ever. (With a mean and a standard deviation in place of the medians this is
    OLMo 2's skipping of steps, arXiv 2501.00656, section 3.)
    """

    spike: float | None = None

    def init(self) -> Seen:
        """Return what is remembered before the first step."""
        return Seen(jnp.full(WINDOW, jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))

    def judge(
        self, seen: Seen, step: jax.Array, loss: jax.Array, grad_norm: jax.Array
    ) -> tuple[jax.Array, Seen]:
        """Return whether a step is bad, bool [], and what is remembered after it.

        Args:
          seen: what is remembered before it.
          step: its number, int32 [].
          loss, grad_norm: float32 [], of the whole batch.
        """
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
        if self.spike is not None:
            losses = jnp.where(jnp.isfinite(seen.losses), seen.losses, jnp.nan)
            median = jnp.nanmedian(losses)
            spread = NORMAL * jnp.nanmedian(jnp.abs(losses - median))
            spread = jnp.maximum(spread, LEAST_SPREAD * jnp.abs(median))
            enough = jnp.isfinite(seen.losses).sum() >= ENOUGH
            bad |= enough & (loss > median + self.spike * spread)
        kept = jnp.where(jnp.isfinite(loss), loss, jnp.inf).astype(jnp.float32)
        return bad, Seen(seen.losses.at[step % WINDOW].set(kept), seen.skipped + bad)


# Only what is no number is bad.
FINITE = Guard()


@dataclass(frozen=True)
class Health:
    """What a bad step is and what comes of it; see `health`."""

    policy: str
    spike: float | None
    limit: int

    @property
    def guard(self) -> Guard:
        """What tells bad steps."""
        return Guard(self.spike)

    def act_on(self, step: int, figures: Mapping[str, float], place: Path) -> None:
        """Warn that a bad step was skipped, or stop.

        Args:
          step: its number, from 1.
          figures: its `loss`, `grad_norm` and `skipped_steps`.
          place: where its batch was written.

        Raises:
          AyaError: the policy is to stop, or too many steps were skipped.
        """
        loss, norm, skipped = figures["loss"], figures["grad_norm"], int(figures["skipped_steps"])
        kind = "" if not math.isfinite(loss + norm) else ", a spike,"
        what = f"the loss is {loss:.6g}{kind} and its gradient's norm {norm:.6g} at step {step}"
        if self.policy == "stop":
            raise AyaError(
                f"train: {what}; lower train.learning_rate, look at the batch in {place}, or go on "
                "without it by health.policy = 'skip'"
            )
        if skipped > self.limit:
            raise AyaError(
                f"train: {what}; it is bad step {skipped}, above health.limit {self.limit}; "
                f"lower train.learning_rate or look at the batches beside {place}"
            )
        log.warning("train: %s; the step is skipped, its batch is in %s", what, place)


@gin.configurable
def health(*, policy: str = "stop", spike: float | None = None, limit: int = 10) -> Health:
    """Return what a training does about bad steps. They never change parameters or moments.

    These settings are no part of what a training is resumed by: a training that stopped at a bad step
    goes on from its last checkpoint with another policy.

    Args:
      policy: "stop", or "skip" to go on with the next batch.
      spike: how many robust standard deviations a loss may lie above the median of the last ones,
        see `Guard`; if absent, only what is no number is bad.
      limit: with "skip", how many steps are skipped in all before the training stops.

    Raises:
      AyaError: an unknown policy, or a number that is not positive.
    """
    if policy not in POLICIES:
        raise AyaError(f"health.policy: unknown policy {policy!r}{nearest(policy, POLICIES)}")
    if spike is not None and spike <= 0:
        raise AyaError(f"health.spike is {spike}; it must be above 0, or None")
    if limit < 0:
        raise AyaError(f"health.limit is {limit}; it must be 0 or more")
    return Health(policy, spike, limit)
