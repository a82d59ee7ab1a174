"""A loaded model: configuration, parameters and tokenizer in one value."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.checkpoints import hugging_face
from aya_jax.checkpoints.model_directory import (
    has_reward_head,
    load_config,
    load_lineage,
    load_params,
)
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError
from aya_jax.models import t5
from aya_jax.models.architecture import (
    ModelConfig,
    abstract_params,
    logical_axes,
    read_config,
    require_decoder,
)
from aya_jax.models.decoder import Params, hidden_states, plain_batch
from aya_jax.models.fields import require_dtype
from aya_jax.models.heads import logits
from aya_jax.models.t5_config import T5Config
from aya_jax.sharding.mesh import shardings
from aya_jax.sharding.place import Place, inference_place
from aya_jax.sharding.programs import compiled, on_rows


class Model(NamedTuple):
    """What a model directory holds, and where: its parameters are split over the devices of `place`.

    Without a place all is on one device. `params` has a leaf `score` where it is a reward model.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    lineage: dict[str, Any]
    place: Place | None = None

    @property
    def is_reward_model(self) -> bool:
        """Whether the model has a scalar head."""
        return "score" in self.params

    def apply(
        self,
        params: Params,
        tokens: jax.Array,
        mask: jax.Array,
        targets: jax.Array | None = None,
    ) -> jax.Array:
        """Return float32 logits [B, T, V]; of an encoder-decoder, at the places of `targets`.

        Args:
          params: of this model, or any of the same shapes.
          tokens: int32 [B, T], padded on the right.
          mask: bool [B, T], True on real tokens.
          targets: of an encoder-decoder, which reads `tokens` with its encoder: what its decoder goes
            on from, int32 [B, T], from `decoder_start_token_id` on and padded on the right.

        Raises:
          AyaError: an encoder-decoder is given no `targets`, or a decoder is.
        """
        config, batch = self.config, plain_batch(tokens, mask)
        dtype = params["embedding"].dtype
        if isinstance(config, T5Config) and targets is not None:
            answers = plain_batch(targets, jnp.ones_like(targets, bool))
            hidden = t5.hidden_states(config, params, batch, answers, dtype=dtype)
        elif targets is None:
            decoder = require_decoder(config, "Model.apply without targets")
            hidden = hidden_states(decoder, params, batch, dtype=dtype)
        else:
            raise AyaError("Model.apply: only an encoder-decoder takes targets")
        return logits(config, params, hidden)

    def on_devices(self) -> "Model":
        """Return the model with its parameters on devices, where the host's memory has them."""
        if self.place is None:
            return self._replace(params=jax.device_put(self.params))
        head = self.is_reward_model
        where = param_shardings(self.config, self.place, reward_head=head)
        return self._replace(params=jax.device_put(self.params, where))

    def run(
        self, function: Callable[..., jax.Array], rows: Any, numbers: Any = (), **settings: Any
    ) -> np.ndarray:
        """Return the result of a function on the model's place, in all processes.

        Args:
          function: of (config, params, rows, numbers, **settings).
          rows: a tree of NumPy arrays whose first axis is the batch, over which they are split; equal
            in all processes.
          numbers: a tree of scalars.
          **settings: hashable; with the function they choose the compiled program.
        """
        program = row_program(
            function, self.config, self.place, reward_head=self.is_reward_model, **settings
        )
        return np.asarray(program(self.params, on_rows(rows, self.place), numbers))


@lru_cache(maxsize=32)
def row_program(
    function: Callable[..., jax.Array],
    config: ModelConfig,
    place: Place | None,
    *,
    reward_head: bool = False,
    **settings: Any,
) -> Callable[[Params, Any, Any], jax.Array]:
    """Return the compiled program that `Model.run` runs; equal arguments share one.

    Arguments as there; it takes the parameters, rows and numbers.
    """
    where = None if place is None else param_shardings(config, place, reward_head=reward_head)
    return compiled(partial(function, config, **settings), place, where)


def param_shardings(config: ModelConfig, place: Place, *, reward_head: bool = False) -> Params:
    """Return the sharding of every parameter.

    Raises:
      AyaError: a parameter does not divide over the mesh, or an encoder-decoder has no scalar head.
    """
    axes = logical_axes(config, reward_head=reward_head)
    where = shardings(axes, place.mesh, place.rules)
    shapes = abstract_params(config, reward_head=reward_head)
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(where), strict=True
    ):
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise AyaError(
                f"device_mesh: the model's parameter '{name}' {leaf.shape} does not divide over the mesh "
                f"{dict(place.mesh.shape)}; give other device_mesh.*"
            ) from None
    return where


def load_model_config(path: str | Path) -> ModelConfig:
    """Return the configuration of a model directory, ours or a Hugging Face one.

    Raises:
      AyaError: it is missing, or of a family or with an option that is not supported.
    """
    path = Path(path)
    if not path.is_dir():
        raise AyaError(f"{path}: no such model directory; check the path")
    return read_config(load_config(path), str(path / "config.json"))


def require_kind(path: str | Path, reward: bool | None) -> bool | None:
    """Return whether a model directory has a scalar head; None where its parameters are not there.

    Raises:
      AyaError: a reward model is expected (True) and it is a language model, or the reverse (False).
    """
    ours = not hugging_face.is_hugging_face(path)
    found = has_reward_head(path) if ours else hugging_face.has_reward_head(path)
    if reward is not None and found is not None and found != reward:
        kinds = ("a language model", "a reward model")
        raise AyaError(f"{path}: is {kinds[found]}, but {kinds[reward]} is needed here")
    return found


@gin.configurable
def inference(*, dtype: str | None = None) -> Any:
    """Return the dtype in which models sample and score, their weights, activations and caches.

    Args:
      dtype: `float32` or `bfloat16`; as a model was saved if absent.

    Raises:
      AyaError: an unknown dtype.
    """
    if dtype is not None:
        require_dtype("inference.dtype", dtype)
    return dtype


def load_inference(path: str | Path, *, reward: bool) -> Model:
    """Read a model that is to sample or to score, as `inference` and `inference_mesh` say; see `load`."""
    return load(path, dtype=inference(), reward=reward, place=inference_place())


def load(
    path: str | Path,
    *,
    dtype: Any = None,
    reward: bool | None = None,
    on_host: bool = False,
    place: Place | None = None,
) -> Model:
    """Read a model directory, ours or a Hugging Face one.

    Args:
      path: the directory.
      dtype: of the parameters, but for the scalar head, which is never rounded; as they were saved
        if absent.
      reward: whether a reward model is expected (True) or a language model (False).
      on_host: whether the parameters stay in the host's memory; without a place as NumPy arrays.
      place: the mesh that the parameters are split over, straight from the disk: each process reads
        what its own devices hold. All are on the default device if absent.

    Raises:
      AyaError: a file is missing or damaged, the family is not supported, the model is not of the
        expected kind, or it does not divide over the mesh.
    """
    path, config = Path(path), load_model_config(path)
    if reward:
        require_decoder(config, f"{path}: a reward model")
    head, where = require_kind(path, reward), None
    if place is not None:
        where = param_shardings(config, place, reward_head=bool(head))
        if on_host:
            where = jax.tree.map(lambda each: each.with_memory_kind("pinned_host"), where)
    options: dict[str, Any] = {"dtype": dtype, "on_host": on_host, "shardings": where}
    if not hugging_face.is_hugging_face(path):
        params, lineage = load_params(path, **options), load_lineage(path)
    else:
        params = hugging_face.load_params(path, config, **options)
        lineage = {"stage": path.resolve().name, "kind": "hugging_face"}
    model = Model(config, params, Tokenizer.load(path), lineage, place)
    if model.tokenizer.vocab_size > config.vocab_size:
        raise AyaError(
            f"{path}: the tokenizer has {model.tokenizer.vocab_size} pieces, config.json says "
            f"vocab_size {config.vocab_size}; they do not belong together"
        )
    return model
