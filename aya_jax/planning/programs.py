"""The programs that a recipe's stages run, described so that they can be compiled with no data and no model."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from aya_jax.generation.engine import decode
from aya_jax.model import param_shardings, row_program
from aya_jax.models.architecture import ModelConfig, abstract_params
from aya_jax.models.config import DecoderConfig
from aya_jax.models.flops import Flops, decode_flops, forward_flops, train_flops
from aya_jax.models.lora import LoRA, freeze, init_adapters
from aya_jax.sharding.mesh import batch_sharding
from aya_jax.sharding.place import Place
from aya_jax.sharding.programs import filled_up
from aya_jax.training.objectives import SFT, Objective, Reward
from aya_jax.training.optimizer import Optimizer
from aya_jax.training.step import train_program

# What a policy of `models.remat` computes a second time in the backward pass: products with weights, attention.
# (Attention's own backward pass makes its scores again under any policy; that is not counted.)
RECOMPUTED = {
    "none": (0, 0),
    "products": (0, 1),
    "attention": (1, 0),
    "full": (1, 1),
    "offload": (1, 1),
}


class Work(Protocol):
    """One program, hashable: equal ones are compiled once."""

    def build(self, place: Place) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the jitted function on a place, and the shapes of what it takes.

        Raises:
          AyaError: something does not divide over the mesh.
        """

    def rows_of_a_run(self, place: Place) -> int:
        """Return how many examples, pairs, prompts or answers one run takes."""

    def tokens(self, place: Place) -> int:
        """Return the tokens that one run reads, or of a sampling, writes."""

    def model_flops(self, place: Place) -> int:
        """Return the operations that the mathematics of one run asks for."""

    def executed_flops(self, place: Place) -> int:
        """Return those and the ones that rematerialisation repeats."""

    def weight_passes(self) -> int:
        """Return how often one run reads all weights at the least."""

    @property
    def config(self) -> ModelConfig:
        """The model."""

    @property
    def dtype(self) -> Any:
        """Of the activations."""

    @property
    def turns(self) -> int:
        """How often a loop turns whose number of turns the program's text does not tell."""


@dataclass(frozen=True)
class Training:
    """A training step.

    Attributes:
      objective, optimizer, accumulate, lora: of the step.
      rows: of the batch; of preferences, pairs.
      length: of each row.
      inputs: of an encoder-decoder, the length of its prompts.
    """

    objective: Objective
    optimizer: Optimizer
    rows: int
    length: int
    accumulate: int = 1
    lora: LoRA | None = None
    inputs: int = 0
    turns: int = 1

    @property
    def config(self) -> ModelConfig:
        """The model."""
        return self.objective.config

    @property
    def pairs(self) -> bool:
        """Whether a row is a pair."""
        return not isinstance(self.objective, SFT)

    def build(self, place: Place) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """See `Work`."""
        step: Any = train_program
        program = step(self.objective, self.optimizer, *place, self.accumulate, self.lora)
        head = self.objective.reward_head
        params: Any = abstract_params(self.config, reward_head=head)
        frozen: tuple[Any, ...] = (params,) if self.objective.held_reference else ()
        if self.lora is not None:
            lora, whole = self.lora, params
            params = jax.eval_shape(
                lambda whole: init_adapters(lora, whole, jax.random.key(0)), whole
            )
            frozen = (jax.eval_shape(lambda whole: freeze(lora, whole), whole), *frozen)
        state = jax.eval_shape(program.init, params)
        return program.step, (state, self._batch(), jax.ShapeDtypeStruct((), jnp.float32), *frozen)

    def _batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        def rows(prefix: str, names: str, length: int) -> dict[str, jax.ShapeDtypeStruct]:
            kinds = {"mask": jnp.bool_}
            return {
                f"{prefix}{name}": jax.ShapeDtypeStruct(
                    (self.rows, length), kinds.get(name, jnp.int32)
                )
                for name in names.split()
            }

        columns = "tokens positions segment_ids mask"
        if not self.pairs:
            inputs = rows("input_", "tokens positions segment_ids", self.inputs)
            return rows("", f"{columns} languages", self.length) | (inputs if self.inputs else {})
        batch = {**rows("chosen_", columns, self.length), **rows("rejected_", columns, self.length)}
        batch["languages"] = jax.ShapeDtypeStruct((self.rows,), jnp.int32)
        if not (self.objective.reward_head or self.objective.held_reference):
            one = jax.ShapeDtypeStruct((self.rows,), jnp.float32)
            batch |= {"reference_chosen": one, "reference_rejected": one}
        return batch

    @property
    def _both(self) -> int:
        return self.rows * (2 if self.pairs else 1)

    def _logits(self) -> int | None:
        """Return at how many places there are logits, None for all."""
        if not isinstance(self.objective, Reward):
            return None
        return self.rows * self.length if self.objective.sft_weight else 0

    def rows_of_a_run(self, place: Place) -> int:
        """See `Work`."""
        return self.rows

    def tokens(self, place: Place) -> int:
        """See `Work`."""
        return self._both * (self.length + self.inputs)

    def model_flops(self, place: Place) -> int:
        """See `Work`."""
        rows, inputs, logits = self._both, self.inputs, self._logits()
        frozen = self.lora is not None
        trained = train_flops(
            self.config, rows, self.length, inputs=inputs, logits=logits, frozen=frozen
        )
        if not self.objective.held_reference:
            return trained
        asked = forward_flops(self.config, rows, self.length, inputs=inputs, logits=logits)
        return trained + asked.total

    def executed_flops(self, place: Place) -> int:
        """See `Work`."""
        # The head is outside of the layers, and so of what is done again.
        again = forward_flops(self.config, self._both, self.length, inputs=self.inputs, logits=0)
        weights, attention = RECOMPUTED[self.remat]
        return self.model_flops(place) + weights * again.weights + attention * again.attention

    @property
    def remat(self) -> str:
        """The policy of the objective."""
        return getattr(self.objective, "remat", "none")

    @property
    def dtype(self) -> Any:
        """Of the activations."""
        return jnp.dtype(getattr(self.objective, "dtype", jnp.float32))

    def weight_passes(self) -> int:
        """See `Work`."""
        held = 1 if self.objective.held_reference else 0
        return self.accumulate * (2 + RECOMPUTED[self.remat][0] + held)


@dataclass(frozen=True)
class Reading:
    """A forward pass over rows: their rewards, or their log-probabilities.

    Attributes:
      function: of (config, params, rows, numbers).
      config: the model.
      rows, length: of the batch.
      columns: of the batch.
      reward_head: whether the model has a scalar head.
      dtype: of the parameters.
      activations: their dtype, where `function` is told one; else that of the parameters.
    """

    function: Callable[..., jax.Array]
    config: DecoderConfig
    rows: int
    length: int
    columns: tuple[str, ...]
    reward_head: bool
    dtype: str = "float32"
    activations: str | None = None
    turns: int = 1

    def build(self, place: Place) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """See `Work`."""
        told = {} if self.activations is None else {"dtype": jnp.dtype(self.activations)}
        program = row_program(
            self.function, self.config, place, reward_head=self.reward_head, **told
        )
        rows = filled_up(self.rows, place)
        batch = {
            name: _split(place, (rows, self.length), jnp.bool_ if name == "mask" else jnp.int32)
            for name in self.columns
        }
        return program, (_params(self.config, place, self.dtype, self.reward_head), batch, ())

    def rows_of_a_run(self, place: Place) -> int:
        """See `Work`."""
        return filled_up(self.rows, place)

    def tokens(self, place: Place) -> int:
        """See `Work`."""
        return filled_up(self.rows, place) * self.length

    def _forward(self, place: Place) -> Flops:
        logits = 0 if self.reward_head else None
        return forward_flops(self.config, filled_up(self.rows, place), self.length, logits=logits)

    def model_flops(self, place: Place) -> int:
        """See `Work`."""
        return self._forward(place).total

    def executed_flops(self, place: Place) -> int:
        """See `Work`."""
        return self.model_flops(place)

    def weight_passes(self) -> int:
        """See `Work`."""
        return 1


@dataclass(frozen=True)
class Sampling:
    """Answers to a batch of prompts.

    Attributes:
      config: the model.
      rows: of the batch.
      prompt, new: tokens of each prompt and of each answer.
      greedy, top_k, top_p: see `generation.engine.sample`.
      dtype: of the parameters, and so of the activations and the cache.
    """

    config: ModelConfig
    rows: int
    prompt: int
    new: int
    greedy: bool
    top_k: int | None = None
    top_p: float | None = None
    dtype: str = "float32"

    @property
    def turns(self) -> int:
        """One a new token."""
        return self.new

    def build(self, place: Place) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """See `Work`."""
        program = row_program(
            decode,
            self.config,
            place,
            max_new_tokens=self.new,
            stop_ids=self.config.stop_ids or (0,),
            greedy=self.greedy,
            top_k=self.top_k,
            top_p=self.top_p,
        )
        rows = filled_up(self.rows, place)
        batch = {
            "tokens": _split(place, (rows, self.prompt), jnp.int32),
            "lengths": _split(place, (rows,), jnp.int32),
            "seeds": _split(place, (rows, 2), jnp.uint32),
        }
        numbers = {
            "seed": jax.ShapeDtypeStruct((), jnp.int32),
            "temperature": jax.ShapeDtypeStruct((), jnp.float32),
        }
        return program, (_params(self.config, place, self.dtype), batch, numbers)

    def rows_of_a_run(self, place: Place) -> int:
        """See `Work`."""
        return filled_up(self.rows, place)

    def tokens(self, place: Place) -> int:
        """See `Work`."""
        return filled_up(self.rows, place) * self.new

    def model_flops(self, place: Place) -> int:
        """See `Work`."""
        return decode_flops(self.config, filled_up(self.rows, place), self.prompt, self.new)

    def executed_flops(self, place: Place) -> int:
        """See `Work`."""
        return self.model_flops(place)

    def weight_passes(self) -> int:
        """See `Work`."""
        return 1 + self.new


def _split(place: Place, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Return the shape of an array whose rows are split over a place."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(*place))


def _params(config: ModelConfig, place: Place, dtype: str, reward_head: bool = False) -> Any:
    """Return the shapes of a model's parameters as they lie on a place."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where),
        abstract_params(config, reward_head=reward_head),
        param_shardings(config, place, reward_head=reward_head),
    )


def _computed_in(work: Work) -> Any:
    """Return the dtype of a program's activations."""
    return getattr(work, "activations", None) or work.dtype


def weight_bytes(work: Work, place: Place) -> int:
    """Return the bytes of all weights as one device multiplies by them: gathered, in the dtype it works in."""
    leaves = jax.tree.leaves(abstract_params(work.config))
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    split = [axis for name in ("heads", "vocab") for axis in place.axes(name)]
    parts = math.prod(place.mesh.shape[axis] for axis in dict.fromkeys(split))
    return count * jnp.dtype(_computed_in(work)).itemsize // parts


def least_hbm_bytes(work: Work, place: Place, arguments: int, outputs: int) -> int:
    """Return what one device must read and write: arguments and results once, weights at each pass."""
    return arguments + outputs + work.weight_passes() * weight_bytes(work, place)


def describe(work: Work) -> dict[str, Any]:
    """Return what tells a program from others, for the plan's reader."""
    fields: Mapping[str, Any] = vars(work)
    shown = ("rows", "length", "inputs", "accumulate", "prompt", "new")
    told = {name: fields[name] for name in shown if fields.get(name)}
    if isinstance(work, Training):
        told |= {"remat": work.remat}
    return told | {"dtype": jnp.dtype(_computed_in(work)).name}
