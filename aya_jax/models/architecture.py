"""What is asked of any model, a decoder or an encoder-decoder, given its configuration."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from aya_jax.errors import AyaError, nearest
from aya_jax.models import decoder, names, t5
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import Cache, Params, cache_size, plain_batch
from aya_jax.models.families import FAMILIES
from aya_jax.models.names import HFTensor
from aya_jax.models.t5 import T5Cache
from aya_jax.models.t5_config import ARCHITECTURES, T5Config
from aya_jax.models.t5_names import t5_tensors

ModelConfig = DecoderConfig | T5Config


def read_config(config: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Read a `config.json` of any architecture.

    Raises:
      AyaError: an unsupported family or option, or a missing size.
    """
    name = config.get("model_type")
    if name in ARCHITECTURES:
        return T5Config.from_hf(config, where)
    if name not in FAMILIES:
        hint = nearest(str(name), [*FAMILIES, *ARCHITECTURES])
        raise AyaError(f"{where}: model_type {name!r} is not supported{hint}")
    return DecoderConfig.from_hf(config, where)


def require_decoder(config: ModelConfig, what: str) -> DecoderConfig:
    """Return `config`; raise `AyaError` where it is of an encoder-decoder, and `what` needs another."""
    if isinstance(config, T5Config):
        raise AyaError(
            f"{what} needs a decoder, and {config.model_type} is an encoder-decoder: it generates, and learns "
            "by SFT; give another model"
        )
    return config


def hf_tensors(config: ModelConfig, *, reward: bool = False) -> tuple[HFTensor, ...]:
    """Return every tensor of the checkpoint of a model, its embedding first.

    Args:
      config: of the model.
      reward: whether it has a scalar head, `score`, in place of one over the vocabulary.

    Raises:
      AyaError: an encoder-decoder has no scalar head.
    """
    if isinstance(config, T5Config) and not reward:
        return tuple(t5_tensors(config))
    return names.hf_tensors(require_decoder(config, "a scalar head"), reward=reward)


# A start asks for these many times over, and each tracing of a model takes a good part of a second.
@cache
def logical_axes(config: ModelConfig, *, reward_head: bool = False) -> Params:
    """Return the logical axes of every parameter, a `PartitionSpec` a leaf; always the same dicts.

    Raises:
      AyaError: an encoder-decoder has no scalar head.
    """
    if isinstance(config, T5Config) and not reward_head:
        return t5.logical_axes(config)
    return decoder.logical_axes(require_decoder(config, "a scalar head"), reward_head=reward_head)


@cache
def abstract_params(config: ModelConfig, *, reward_head: bool = False) -> Params:
    """Return the shape and dtype of every parameter as it is initialised, a `ShapeDtypeStruct` a leaf.

    The dicts are always the same ones: not to be changed.

    Raises:
      AyaError: an encoder-decoder has no scalar head.
    """
    key = jax.random.key(0)
    if isinstance(config, T5Config) and not reward_head:
        return jax.eval_shape(lambda key: t5.init_params(config, key), key)
    known = require_decoder(config, "a scalar head")
    return jax.eval_shape(lambda k: decoder.init_params(known, k, reward_head=reward_head), key)


def start_decoding(
    config: ModelConfig, params: Params, tokens_BP: jax.Array, lengths_B: jax.Array, *, new: int
) -> tuple[jax.Array, Cache | T5Cache]:
    """Return the hidden states [B, D] that the first new tokens are drawn from, and the cache.

    Args:
      config, params: the model.
      tokens_BP: prompts, int32 [B, P], padded on the right.
      lengths_B: of the prompts, int32 [B].
      new: the most tokens that will be decoded.

    Activations and the cache are of the dtype of the embedding.
    """
    b, p = tokens_BP.shape
    dtype = params["embedding"].dtype
    prompts = plain_batch(tokens_BP, jnp.arange(p) < lengths_B[:, None])
    if isinstance(config, T5Config):
        filled = t5.prefill(config, params, prompts, slots=new + 1, dtype=dtype)
        first = jnp.full((b,), config.decoder_start_token_id, jnp.int32)
        return t5.decode_step(config, params, filled, first, 0, dtype=dtype)
    slots = cache_size(config, p + new)
    hidden, cache = decoder.prefill(config, params, prompts, slots=slots, dtype=dtype)
    return jnp.take_along_axis(hidden, (lengths_B - 1)[:, None, None], axis=1)[:, 0], cache


def continue_decoding(
    config: ModelConfig,
    params: Params,
    cache: Any,
    tokens_B: jax.Array,
    lengths_B: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, Cache | T5Cache]:
    """Return the hidden states [B, D] after the new tokens of number `index`, and the cache."""
    dtype = params["embedding"].dtype
    if isinstance(config, T5Config):
        return t5.decode_step(config, params, cache, tokens_B, index + 1, dtype=dtype)
    return decoder.decode_step(config, params, cache, tokens_B, lengths_B + index, dtype=dtype)
