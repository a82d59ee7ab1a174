"""A loaded model: configuration, parameters and tokenizer in one value."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from aya_jax.checkpoints import hugging_face
from aya_jax.checkpoints.model_directory import load_config, load_lineage, load_params
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import Params, hidden_states, plain_batch
from aya_jax.models.heads import logits


class Model(NamedTuple):
    """What a model directory holds. `params` has a leaf `score` where it is a reward model."""

    config: DecoderConfig
    params: Params
    tokenizer: Tokenizer
    lineage: dict[str, Any]

    @property
    def is_reward_model(self) -> bool:
        """Whether the model has a scalar head."""
        return "score" in self.params

    def apply(self, params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Return float32 logits [B, T, V].

        Args:
          params: of this model, or any of the same shapes.
          tokens: int32 [B, T], padded on the right.
          mask: bool [B, T], True on real tokens.
        """
        dtype = params["embedding"].dtype
        hidden = hidden_states(self.config, params, plain_batch(tokens, mask), dtype=dtype)
        return logits(self.config, params, hidden)


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
    path = Path(path)
    if not path.is_dir():
        raise AyaError(f"{path}: no such model directory; check the path")
    config = DecoderConfig.from_hf(load_config(path), str(path / "config.json"))
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
