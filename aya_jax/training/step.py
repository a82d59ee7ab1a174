"""The jitted train step: gradients over micro-batches, the update, metrics."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from aya_jax.losses.total import add
from aya_jax.models.architecture import abstract_params, logical_axes
from aya_jax.models.decoder import Params
from aya_jax.models.lora import LoRA, adapter_axes, frozen_axes, init_adapters, join
from aya_jax.sharding.mesh import Rules, batch_sharding, replicated, shardings
from aya_jax.sharding.place import placed_on
from aya_jax.training.health import FINITE, Guard, Seen
from aya_jax.training.objectives import Arrays, Objective
from aya_jax.training.optimizer import Optimizer

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that changes during training; the data and the learning rate follow from `step`.

    With LoRA `params` are the adapters alone, and `opt_state` is theirs. `seen` is what bad steps are
    told by.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    seen: Seen


class Program(NamedTuple):
    """A compiled step with the shardings of what it takes: `step(state, batch, lr, *frozen)`.

    `init` takes parameters in any dtype, of which it makes float32 ones.
    `frozen` is what the step leaves whole: with LoRA the base, and then of an objective with a held
    reference that one's parameters; the sharding of what there is not is None.
    """

    init: Callable[[Params], TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    batch_sharding: jax.sharding.NamedSharding
    param_sharding: Any
    base_sharding: Any
    reference_sharding: Any


@lru_cache(maxsize=16)
def train_program(
    objective: Objective,
    optimizer: Optimizer,
    mesh: Mesh,
    rules: Rules,
    accumulate: int = 1,
    lora: LoRA | None = None,
    guard: Guard = FINITE,
) -> Program:
    """Return the program of an objective; equal arguments share one, hence one compilation.

    A bad step leaves parameters and the optimizer's state as they were. Its metrics say so in `bad`, 0
    or 1; `skipped_steps` counts those so far.

    Args:
      objective: what is minimised.
      optimizer: what turns gradients into updates.
      mesh, rules: where parameters and batches live.
      accumulate: micro-batches a step; the batch is split into so many along its first axis, and
        the gradient is that of the mean over the whole batch.
      lora: what is trained in place of the parameters, if anything.
      guard: tells bad steps.
    """
    transform = optimizer.transform()
    axes = logical_axes(objective.config, reward_head=objective.reward_head)
    trained = axes if lora is None else adapter_axes(lora, axes)
    param_sharding = shardings(trained, mesh, rules)
    base_sharding = None if lora is None else shardings(frozen_axes(lora, axes), mesh, rules)
    reference_sharding = shardings(axes, mesh, rules) if objective.held_reference else None
    whole = replicated(mesh)

    def fresh(params: Params) -> TrainState:
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
        return TrainState(jnp.zeros((), jnp.int32), params, transform.init(params), guard.init())

    shapes = abstract_params(objective.config, reward_head=objective.reward_head)
    if lora is not None:
        key = jax.random.key(0)
        shapes = jax.eval_shape(lambda params: init_adapters(lora, params, key), shapes)

    def place(tree: Any) -> Any:
        """Moments are sharded as their parameters; whatever else the state holds is replicated."""
        like: Any = jax.tree.structure(param_sharding)

        def of(node: Any) -> Any:
            if jax.tree.structure(node) != like:
                return whole
            return jax.tree.map(
                lambda x, param, sharding: sharding if x.shape == param.shape else whole,
                node,
                shapes,
                param_sharding,
            )

        return jax.tree.map(of, tree, is_leaf=lambda node: jax.tree.structure(node) == like)

    state_sharding = place(jax.eval_shape(fresh, shapes))

    def gradients(params: Params, batch: Arrays, *frozen: Params) -> tuple[Params, Any]:
        if objective.held_reference:
            with placed_on(mesh, rules):
                batch = batch | objective.reference(frozen[-1], batch)

        def loss(params: Params) -> tuple[jax.Array, Any]:
            whole = params if lora is None else join(lora, frozen[0], params)
            with placed_on(mesh, rules):
                total = objective(whole, batch)
            return total.loss, total

        grads, total = jax.grad(loss, has_aux=True)(params)
        # Each device gets its own part of the sum, and never holds the whole of it.
        return jax.lax.with_sharding_constraint(grads, param_sharding), total

    def step(
        state: TrainState, batch: Arrays, learning_rate: jax.Array, *frozen: Params
    ) -> tuple[TrainState, Metrics]:
        if accumulate == 1:
            grads, total = gradients(state.params, batch, *frozen)
        else:
            # Every so many rows make a micro-batch: so each device's own rows stay where they are.
            micro = jax.tree.map(
                lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
            )
            zeros = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype),
                jax.eval_shape(
                    gradients, state.params, jax.tree.map(lambda x: x[0], micro), *frozen
                ),
            )

            def body(carry: Any, part: Arrays) -> tuple[Any, None]:
                grads, total = gradients(state.params, part, *frozen)
                return (jax.tree.map(jnp.add, carry[0], grads), add(carry[1], total)), None

            (grads, total), _ = jax.lax.scan(body, zeros, micro)
        count = jnp.maximum(total.count, 1.0)
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        metrics = {name: s / jnp.maximum(n, 1.0) for name, (s, n) in total.metrics.items()}
        if "loss_by_language" in metrics:
            # A language that is not in the batch has no mean; what is no number would stop jax_debug_nans.
            absent = total.metrics["loss_by_language"][1] == 0
            metrics["loss_by_language"] = jnp.where(absent, jnp.inf, metrics["loss_by_language"])
        metrics["grad_norm"] = optax.global_norm(grads)
        metrics["param_norm"] = optax.global_norm(state.params)
        bad, seen = guard.judge(state.seen, state.step, metrics["loss"], metrics["grad_norm"])
        params, opt_state = jax.tree.map(
            lambda old, new: jnp.where(bad, old, new),
            (state.params, state.opt_state),
            (params, opt_state),
        )
        metrics["bad"] = bad.astype(jnp.float32)
        metrics["skipped_steps"] = seen.skipped.astype(jnp.float32)
        return TrainState(state.step + 1, params, opt_state, seen), metrics

    rows = batch_sharding(mesh, rules)
    frozen_sharding = [each for each in (base_sharding, reference_sharding) if each is not None]
    return Program(
        jax.jit(fresh, in_shardings=(param_sharding,), out_shardings=state_sharding),
        jax.jit(
            step,
            in_shardings=(state_sharding, rows, None, *frozen_sharding),
            out_shardings=(state_sharding, whole),
            donate_argnums=0,
        ),
        rows,
        param_sharding,
        base_sharding,
        reference_sharding,
    )
