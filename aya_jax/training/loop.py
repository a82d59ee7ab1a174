"""The training loop: a pure function of (parameters, data, settings) that survives being killed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gin
import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.data.loader import Loader
from aya_jax.errors import AyaError
from aya_jax.models.decoder import Params
from aya_jax.models.lora import LoRA, freeze, init_adapters
from aya_jax.sharding.mesh import device_mesh, logical_rules
from aya_jax.training.objectives import Objective
from aya_jax.training.optimizer import Optimizer, learning_rate_at
from aya_jax.training.step import Metrics, train_program

Observer = Callable[[int, Mapping[str, float]], None]


class Store(Protocol):
    """Where the loop keeps its state; `checkpoints.train_store.TrainStore` is one."""

    def save(self, step: int, state: Any) -> None:
        """Write the whole state or nothing."""

    def latest_step(self) -> int | None:
        """Return the step of the newest whole checkpoint."""

    def restore(self, step: int | None, like: Any) -> tuple[int, Any]:
        """Return the step and state of a checkpoint, bit for bit as they were saved."""


@gin.configurable(
    denylist=["objective", "params", "arrays", "store", "observe", "lora", "optimizer"]
)
def train(
    objective: Objective,
    params: Params,
    arrays: Mapping[str, np.ndarray],
    *,
    store: Store,
    observe: Observer = lambda step, figures: None,
    lora: LoRA | None = None,
    optimizer: Optimizer,
    steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    schedule: str = "cosine",
    warmup: float = 0.05,
    final_learning_rate: float = 0.1,
    accumulate: int = 1,
    seed: int = 0,
    log_every: int = 10,
    checkpoint_every: int = 100,
) -> int:
    """Minimise `objective` over `arrays` and leave the last state in `store`; return its step.

    Resumes from the newest checkpoint in `store`, and then ends in the same bits as an unbroken
    run: the batch and the learning rate of a step follow from its number.

    Parameters are float32 throughout, whatever `params` are. With LoRA that is said
    of the adapters, and they alone are the state that is kept.

    Args:
      objective: the loss.
      params: where training starts (not changed).
      arrays: training rows, equal first axes.
      store: keeps the train state, every `checkpoint_every` steps and at the end.
      observe: told the step and the figures of every `log_every`-th step and the last.
      lora: what is trained on top of `params`; if absent, they are.
      optimizer: what turns gradients into updates.
      steps: number of updates; if absent, `epochs` passes over the rows.
      epochs: passes over the data where `steps` is absent.
      batch_size: rows an update, over all processes and micro-batches.
      learning_rate, schedule, warmup, final_learning_rate: see `optimizer.learning_rate_at`.
      accumulate: micro-batches an update.
      seed: of the order of the data, and of what adapters begin with.
      log_every, checkpoint_every: in steps.

    Raises:
      AyaError: the batch does not divide, or the loss or its gradient is no longer a number; no
        state is kept after that.
    """
    if batch_size < 1 or batch_size % (accumulate * jax.process_count()):
        raise AyaError(
            f"train.batch_size {batch_size} must be a positive multiple of train.accumulate {accumulate} "
            f"times the {jax.process_count()} processes"
        )
    count = len(next(iter(arrays.values())))
    total = steps if steps is not None else max(1, math.ceil(epochs * count / batch_size))
    program = train_program(
        objective,
        optimizer,
        device_mesh(),
        logical_rules(),
        accumulate,
        lora,
    )
    try:
        program.batch_sharding.shard_shape((batch_size,))
    except ValueError:
        raise AyaError(
            f"train.batch_size {batch_size} does not divide over the mesh "
            f"{dict(program.batch_sharding.mesh.shape)}; give another size, or other device_mesh.*"
        ) from None
    loader = Loader(arrays, batch_size=batch_size, seed=seed)
    base: tuple[Params, ...] = ()
    if lora is None:
        # The step donates its state: start from a copy, the caller's parameters stay whole.
        start = jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)
    else:
        start = init_adapters(lora, params, jax.random.key(seed))
        base = (jax.device_put(freeze(lora, params), program.base_sharding),)
    state = program.init(start)
    done = store.latest_step()
    if done is not None:
        done, state = store.restore(None, state)
    unread: list[tuple[int, Metrics]] = []
    for step in range(done or 0, total):
        rate = learning_rate_at(
            step,
            peak=learning_rate,
            steps=total,
            warmup=warmup,
            schedule=schedule,
            final=final_learning_rate,
        )
        batch = jax.device_put(loader[step], program.batch_sharding)
        state, metrics = program.step(state, batch, jnp.float32(rate), *base)
        done = step + 1
        unread.append((done, metrics))
        logged = done % log_every == 0 or done == total
        kept = done % checkpoint_every == 0 or done == total
        # Reading a figure waits for its step, so they are read together and seldom.
        if logged or kept:
            _require_finite(unread)
            unread.clear()
        if logged:
            figures = {name: float(value) for name, value in metrics.items()}
            run = {"learning_rate": rate, "total": total, "batch_size": batch_size}
            observe(done, {**figures, **run})
        if kept:
            store.save(done, state)
    return total


def _require_finite(steps: Sequence[tuple[int, Metrics]]) -> None:
    for step, metrics in steps:
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not math.isfinite(loss + norm):
            raise AyaError(
                f"train: the loss is {loss} and its gradient's norm {norm} at step {step}; "
                "lower train.learning_rate or look at the data of that step"
            )
