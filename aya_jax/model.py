"""A loaded model: configuration, parameters and tokenizer in one value."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aya_jax.checkpoints import hugging_face
from aya_jax.checkpoints.model_directory import load_config, load_lineage, load_params
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError
from aya_jax.models import t5
from aya_jax.models.architecture import ModelConfig, read_config, require_decoder
from aya_jax.models.decoder import Params, hidden_states, plain_batch
from aya_jax.models.heads import logits
from aya_jax.models.t5_config import T5Config


class Model(NamedTuple):
    """What a model directory holds. `params` has a leaf `score` where it is a reward model."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    lineage: dict[str, Any]

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


def load_model_config(path: str | Path) -> ModelConfig:
    """Return the configuration of a model directory, ours or a Hugging Face one.

    Raises:
      AyaError: it is missing, or of a family or with an option that is not supported.
    """
    path = Path(path)
    if not path.is_dir():
        raise AyaError(f"{path}: no such model directory; check the path")
    return read_config(load_config(path), str(path / "config.json"))


def load(
    path: str | Path, *, dtype: Any = None, reward: bool | None = None, on_host: bool = False
) -> Model:
    """Read a model directory, ours or a Hugging Face one.

    Args:
      path: the directory.
      dtype: of the parameters, but for the scalar head, which is never rounded; as they were saved
        if absent.
      reward: whether a reward model is expected (True) or a language model (False).
      on_host: whether the parameters stay NumPy arrays, in the host's memory.

    Raises:
      AyaError: a file is missing or damaged, the family is not supported, or the model is not of
        the expected kind.
    """
    path, config = Path(path), load_model_config(path)
    if reward:
        require_decoder(config, f"{path}: a reward model")
    if hugging_face.is_hugging_face(path):
        params = hugging_face.load_params(path, config, dtype=dtype, on_host=on_host)
        lineage = {"stage": path.resolve().name, "kind": "hugging_face"}
    else:
        params, lineage = load_params(path, dtype=dtype, on_host=on_host), load_lineage(path)
    model = Model(config, params, Tokenizer.load(path), lineage)
    if reward is not None and reward != model.is_reward_model:
        kinds = ("a language model", "a reward model")
        raise AyaError(f"{path}: is {kinds[not reward]}, but {kinds[reward]} is needed here")
    if model.tokenizer.vocab_size > config.vocab_size:
        raise AyaError(
            f"{path}: the tokenizer has {model.tokenizer.vocab_size} pieces, config.json says "
            f"vocab_size {config.vocab_size}; they do not belong together"
        )
    return model
