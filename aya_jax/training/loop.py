"""The training loop: a pure function of (parameters, data, settings) that survives being killed."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import gin
import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.data.loader import Loader, prefetch
from aya_jax.errors import AyaError
from aya_jax.models.decoder import Params
from aya_jax.models.lora import LoRA, freeze, init_adapters
from aya_jax.sharding.mesh import device_mesh, logical_rules
from aya_jax.sharding.programs import free
from aya_jax.training.health import health
from aya_jax.training.incidents import Incidents
from aya_jax.training.objectives import Objective
from aya_jax.training.optimizer import Optimizer, learning_rate_at
from aya_jax.training.preemption import Preempted, until_saved
from aya_jax.training.step import Metrics, Program, TrainState, train_program
from aya_jax.training.telemetry import Telemetry
from aya_jax.training.watchdog import watchdog
from aya_jax.training.work import RowWork

Observer = Callable[[int, Mapping[str, float]], None]


class Store(Protocol):
    """Where the loop keeps its state; `checkpoints.train_store.TrainStore` is one."""

    def save(self, step: int, state: Any) -> None:
        """Take the whole state, and write it or nothing while the training goes on."""

    def wait(self) -> None:
        """Wait until all that was saved is written."""

    def latest_step(self) -> int | None:
        """Return the step of the newest whole checkpoint."""

    def restore(self, step: int | None, like: Any) -> tuple[int, Any]:
        """Return the step and state of a checkpoint, bit for bit as they were saved."""


@gin.configurable(
    denylist=[
        *("objective", "params", "arrays", "store", "incidents", "observe", "telemetry", "lora"),
        *("optimizer", "languages", "reference"),
    ]
)
def train(
    objective: Objective,
    params: Params,
    arrays: Mapping[str, np.ndarray],
    *,
    store: Store,
    incidents: Incidents,
    observe: Observer = lambda step, figures: None,
    telemetry: Telemetry | None = None,
    lora: LoRA | None = None,
    optimizer: Optimizer,
    languages: Sequence[str] = (),
    reference: Params | None = None,
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
      params: where training starts. Their memory is given back, but for LoRA's base and a reference:
        they cannot be used afterwards.
      arrays: training rows, equal first axes.
      store: keeps the train state, every `checkpoint_every` steps and at the end.
      incidents: where the batches of bad steps go, and the stacks of a stuck one.
      observe: told the step and the figures of every `log_every`-th step and the last.
      telemetry: watches how fast it goes; its caller asks it for figures.
      lora: what is trained on top of `params`; if absent, they are.
      optimizer: what turns gradients into updates.
      languages: names of those that the array `languages` numbers from 1; `loss/NAME` is told of each.
      reference: the parameters of an objective's held reference, perhaps `params` themselves.
      steps: number of updates; if absent, `epochs` passes over the rows.
      epochs: passes over the data where `steps` is absent.
      batch_size: rows an update, over all processes and micro-batches.
      learning_rate, schedule, warmup, final_learning_rate: see `optimizer.learning_rate_at`.
      accumulate: micro-batches an update.
      seed: of the order of the data, and of what adapters begin with.
      log_every, checkpoint_every: in steps.

    Raises:
      AyaError: the batch does not divide, or a step is bad (see `health`); no state of that step or a
        later one is kept.
      Preempted: a SIGTERM came; the state is kept.
    """
    count = len(next(iter(arrays.values())))
    total = steps if steps is not None else max(1, math.ceil(epochs * count / batch_size))
    care = health()
    program = train_program(
        objective,
        optimizer,
        device_mesh(),
        logical_rules(),
        accumulate,
        lora,
        care.guard,
    )
    _check_batch(batch_size, accumulate, program)
    state, frozen = _begin(program, params, lora, seed, reference)
    done = kept = store.latest_step()
    if done is not None:
        # The memory has no room for two states: what was begun makes way.
        state = jax.tree.map(_spec, state)
        done, state = store.restore(None, state)
    watch = telemetry or Telemetry(work=RowWork(0, 0))
    advance = watch.watched(program.step)
    loader = Loader(arrays, batch_size=batch_size, seed=seed)
    unread: deque[tuple[int, Metrics]] = deque()

    def rate(step: int) -> float:
        return learning_rate_at(
            step,
            peak=learning_rate,
            steps=total,
            warmup=warmup,
            schedule=schedule,
            final=final_learning_rate,
        )

    def batch(step: int) -> dict[str, jax.Array]:
        return loader.on(step, program.batch_sharding)

    def read(*, left: int) -> None:
        """Wait for all steps but the last `left`, and act on what they tell, in order."""
        while len(unread) > left:
            step, metrics = unread.popleft()
            figures = _figures(jax.device_get(metrics), languages)
            dog.beat(step)
            if figures.pop("bad"):
                place = incidents.keep_batch(step, loader.rows(step - 1), loader[step - 1])
                care.act_on(step, figures, place)
            if step % log_every == 0 or step == total:
                run = {"learning_rate": rate(step - 1), "total": total, "batch_size": batch_size}
                # A curve has no place for what is no number.
                told = {name: value for name, value in figures.items() if math.isfinite(value)}
                observe(step, {**told, **run})

    with (
        watchdog(incidents.stacks) as dog,
        until_saved() as preempted,
        prefetch(batch, done or 0, total) as batches,
    ):
        for step in range(done or 0, total):
            if preempted(step):
                read(left=0)
                if step != kept:
                    store.save(step, state)
                store.wait()
                raise Preempted(f"saved at step {step}")
            with watch.waiting():
                rows = next(batches)
            state, metrics = advance(state, rows, jnp.float32(rate(step)), *frozen)
            watch.step(step + 1, metrics)
            unread.append((step + 1, metrics))
            # While the device is at one step the next is made ready, and no process is further ahead.
            read(left=1)
            if (step + 1) % checkpoint_every == 0 or step + 1 == total:
                read(left=0)
                kept = step + 1
                store.save(kept, state)
        store.wait()
    return total


def _figures(metrics: Metrics, languages: Sequence[str]) -> dict[str, float]:
    """Return the metrics of a step as numbers; those of languages that it had none of are infinite."""
    each = metrics.pop("loss_by_language", ())
    named = {f"loss/{name}": float(value) for name, value in zip(languages, each[1:], strict=False)}
    return {name: float(value) for name, value in metrics.items()} | named


def _spec(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _check_batch(batch_size: int, accumulate: int, program: Program) -> None:
    if batch_size < 1 or batch_size % accumulate:
        raise AyaError(
            f"train.batch_size {batch_size} must be a positive multiple of train.accumulate {accumulate} "
            "(micro-batches an update)"
        )
    try:
        program.batch_sharding.shard_shape((batch_size,))
    except ValueError:
        raise AyaError(
            f"train.batch_size {batch_size} does not divide over the mesh "
            f"{dict(program.batch_sharding.mesh.shape)}; give another size, or other device_mesh.*"
        ) from None


def _begin(
    program: Program, params: Params, lora: LoRA | None, seed: int, reference: Params | None
) -> tuple[TrainState, tuple[Params, ...]]:
    """Return the state before the first step, and what the steps leave whole: see `Program`."""
    held: tuple[Params, ...] = ()
    if program.reference_sharding is not None:
        assert reference is not None, "an objective with a held reference needs its parameters"
        held = (jax.device_put(reference, program.reference_sharding),)
    if lora is None:
        state = program.init(params)
        if reference is not params:
            free(params)
        return state, held
    base = jax.device_put(freeze(lora, params), program.base_sharding)
    begin = jax.jit(partial(init_adapters, lora), out_shardings=program.param_sharding)
    return program.init(begin(params, jax.random.key(seed))), (base, *held)
