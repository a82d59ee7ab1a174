"""The linear log-probability against logits that are made and kept, in time and in memory."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import aya_kernels
from aya_kernels.linear_logprob.api import BACKENDS
from benchmarks.operands import normal, ours
from benchmarks.table import Question, Work
from benchmarks.timing import Program, compiled

BASELINES = ["materialised logits"]


class Sizes(NamedTuple):
    """The output layer of Aya Expanse 8B."""

    tokens: tuple[int, ...] = (4096, 8192)
    hidden: int = 4096
    vocabulary: int = 256_000
    dtype: Any = jnp.bfloat16


FULL = Sizes()
TINY = Sizes((32,), 32, 5000, jnp.float32)
CPU = Sizes((512,), 256, 64_000, jnp.float32)


def questions(sizes: Sizes) -> Iterator[Question]:
    """Return what is asked: forward, and with the gradients to both sides."""
    for tokens in sizes.tokens:
        for backward in (False, True):
            yield question(sizes, tokens, backward)


def question(sizes: Sizes, tokens: int, backward: bool) -> Question:
    """Return what is asked of one number of tokens and one pass."""
    hidden = normal(0, tokens, sizes.hidden, dtype=sizes.dtype)
    weight = 0.02 * normal(1, sizes.vocabulary, sizes.hidden, dtype=sizes.dtype)
    targets = jax.random.randint(jax.random.key(2), (tokens,), 0, sizes.vocabulary)

    def made(call: Callable[..., Any]) -> Program:
        def loss(hidden: Any, weight: Any, targets: Any) -> Any:
            return call(hidden, weight, targets).sum()

        run = jax.value_and_grad(loss, argnums=(0, 1)) if backward else loss
        return compiled(run, hidden, weight, targets)

    makers: dict[str, Callable[[], Program]] = {
        name: partial(made, partial(aya_kernels.linear_logprob, backend=name))
        for name in ours(BACKENDS)
    }
    makers[BASELINES[0]] = partial(made, materialised)
    passes = "forward and backward" if backward else "forward"
    operations = 2.0 * tokens * sizes.hidden * sizes.vocabulary * (3 if backward else 1)
    name = f"logprob {tokens} x {sizes.hidden} x {sizes.vocabulary}, {passes}"
    return Question(name, Work(operations), makers)


def materialised(hidden: jax.Array, weight: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the same by float32 logits [T, V]."""
    logits = jnp.einsum("td,vd->tv", hidden, weight, preferred_element_type=jnp.float32)
    logprobs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logprobs, targets[:, None], axis=1)[:, 0]
