"""The configuration of mT5, read from and written as its `config.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aya_jax.errors import AyaError
from aya_jax.models.fields import (
    given,
    hashable,
    ids_of,
    jsonable,
    require_given,
    require_numbers,
    require_sizes,
    told_of,
)

# Aya 101 calls itself t5, of which it is the later kind: gated, and with an output embedding.
ARCHITECTURES = {"mt5": "MT5ForConditionalGeneration", "t5": "T5ForConditionalGeneration"}
FEED_FORWARD = "gated-gelu"
_SIZES = ("vocab_size", "d_model", "d_ff", "num_layers", "num_heads")
_DEFAULTS = {
    "d_kv": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


@dataclass(frozen=True)
class T5Config:
    """Sizes and options of an mT5, named as in Hugging Face's `config.json`.

    The output embedding is always one of its own, as in every published mT5. Dropout is never applied.
    `other` is JSON text of all that was in the file, so that it is written again; it plays no part in
    comparisons.

    Raises:
      AyaError: a size that is none, or buckets that do not fit the distance.
    """

    vocab_size: int
    d_model: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    d_kv: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    pad_token_id: int = 0
    eos_token_id: int | tuple[int, ...] = 1
    decoder_start_token_id: int = 0
    model_type: str = "mt5"
    other: str = field(default="{}", compare=False, repr=False)

    def __post_init__(self) -> None:
        sizes = (*_SIZES, "num_decoder_layers", "d_kv", "relative_attention_max_distance")
        require_sizes(self, sizes)
        require_numbers(self, ("layer_norm_epsilon", "initializer_factor"))
        buckets, distance = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
        if not isinstance(buckets, int) or buckets < 4 or buckets % 2 or buckets // 2 >= distance:
            raise AyaError(
                f"config: relative_attention_num_buckets must be an even number from 4 to less than "
                f"twice relative_attention_max_distance ({distance}), not {buckets!r}"
            )
        for name in ("pad_token_id", "decoder_start_token_id"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value < self.vocab_size:
                raise AyaError(f"config: {name} must be a token, not {value!r}")

    @property
    def max_position_embeddings(self) -> int:
        """The longest text: positions are relative, so there is no limit but the memory."""
        return 1 << 30

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens of `eos_token_id`."""
        return ids_of(self.eos_token_id)

    @property
    def logit_scale(self) -> float:
        """The factor of logits: none."""
        return 1.0

    @property
    def final_logit_softcapping(self) -> None:
        """The cap of logits: none."""
        return None

    def to_hf(self, *, reward: bool = False) -> dict[str, Any]:
        """Return the `config.json` of this model.

        Raises:
          AyaError: `reward` asks for that of a reward model.
        """
        if reward:
            raise AyaError(
                f"{self.model_type} has no scalar head: a reward model must be a decoder"
            )
        whole = {
            **json.loads(self.other),
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "is_encoder_decoder": True,
            "feed_forward_proj": FEED_FORWARD,
            "tie_word_embeddings": False,
            "num_decoder_layers": self.num_decoder_layers,
            "decoder_start_token_id": self.decoder_start_token_id,
            **{name: getattr(self, name) for name in (*_SIZES, *_DEFAULTS)},
        }
        return jsonable(whole)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> "T5Config":
        """Read a `config.json`; whatever it asks for that is not supported is refused by name.

        What it says of `tie_word_embeddings` is passed over: published files say false, those that
        transformers 5 writes say true of the same models.

        Raises:
          AyaError: another feed-forward layer than `gated-gelu`, a quantised model, or a missing size.
        """
        feed_forward = config.get("feed_forward_proj", FEED_FORWARD)
        if feed_forward != FEED_FORWARD:
            raise AyaError(
                f"{where}: feed_forward_proj {feed_forward!r} is not supported, only {FEED_FORWARD!r}"
            )
        if config.get("quantization_config") is not None:
            raise AyaError(
                f"{where}: quantization_config={config['quantization_config']!r} is not supported"
            )
        name = config.get("model_type", "mt5")
        # An older T5 has one embedding for both ends, and scales what it is multiplied by.
        if name == "t5" and config.get("tie_word_embeddings", True):
            raise AyaError(f"{where}: a t5 with tie_word_embeddings is not supported, only without")
        require_given(config, _SIZES, where)
        get = partial(given, config)
        values = {"model_type": name, **{size: config[size] for size in _SIZES}}
        values |= {name: hashable(get(name, default)) for name, default in _DEFAULTS.items()}
        values["num_decoder_layers"] = get("num_decoder_layers", config["num_layers"])
        values["decoder_start_token_id"] = get("decoder_start_token_id", values["pad_token_id"])
        with told_of(where):
            return cls(**values, other=json.dumps(dict(config), sort_keys=True))
