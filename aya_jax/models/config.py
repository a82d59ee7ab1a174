"""The configuration of a decoder, read from and written as the family's own `config.json`."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import gin

from aya_jax.errors import AyaError, nearest


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and options of a Cohere decoder, named as in Hugging Face's `config.json`.

    The defaults are those of `CohereConfig` in transformers where it has one.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_theta: float = 10000.0
    logit_scale: float = 0.0625
    layer_norm_eps: float = 1e-5
    max_position_embeddings: int = 8192
    use_qk_norm: bool = False
    initializer_range: float = 0.02
    pad_token_id: int = 0
    bos_token_id: int = 5
    eos_token_id: int = 255001

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise AyaError(
                f"config: hidden_size {self.hidden_size} is no multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise AyaError(
                f"config: num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise AyaError(
                f"config: the head size {self.head_dim} must be even for rotary embedding"
            )

    @property
    def head_dim(self) -> int:
        """The size of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def parameter_count(self) -> int:
        """The number of parameters of the language model (tied embeddings counted once)."""
        d, h, k = self.hidden_size, self.head_dim, self.num_key_value_heads
        attention = 2 * d * self.num_attention_heads * h + 2 * d * k * h
        norms = d + (self.num_attention_heads + k) * h * self.use_qk_norm
        layer = attention + 3 * d * self.intermediate_size + norms
        return self.vocab_size * d + self.num_hidden_layers * layer + d

    def to_hf(self, *, reward: bool = False) -> dict[str, Any]:
        """Return the `config.json` of this decoder, `reward` for one with a scalar head."""
        head = "CohereForSequenceClassification" if reward else "CohereForCausalLM"
        return {
            "architectures": [head],
            "model_type": "cohere",
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": True,
            **asdict(self),
        }

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> "DecoderConfig":
        """Read a `config.json`; whatever it asks for that is not supported is refused by name.

        Raises:
          AyaError: an unsupported family or option, or a missing size.
        """
        family = config.get("model_type")
        if family != "cohere":
            raise AyaError(
                f"{where}: model_type {family!r} is not supported{nearest(str(family), ['cohere'])}"
            )
        required = {
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_scaling": None,
        }
        for name, value in required.items():
            if config.get(name, value) != value:
                raise AyaError(f"{where}: {name}={config[name]!r} is not supported, only {value!r}")
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in config.items() if name in known}
        values.setdefault("num_key_value_heads", config.get("num_attention_heads"))
        missing = {f.name for f in fields(cls) if f.default is MISSING} - set(values)
        if missing:
            raise AyaError(f"{where}: field '{min(missing)}' is missing")
        return cls(**values)


@gin.configurable
def decoder_config(
    *,
    vocab_size: int = gin.REQUIRED,
    hidden_size: int = gin.REQUIRED,
    intermediate_size: int = gin.REQUIRED,
    num_hidden_layers: int = gin.REQUIRED,
    num_attention_heads: int = gin.REQUIRED,
    num_key_value_heads: int = gin.REQUIRED,
    rope_theta: float = 10000.0,
    logit_scale: float = 0.0625,
    layer_norm_eps: float = 1e-5,
    max_position_embeddings: int = 8192,
    use_qk_norm: bool = False,
    initializer_range: float = 0.02,
    pad_token_id: int = 0,
    bos_token_id: int = 5,
    eos_token_id: int = 255001,
) -> DecoderConfig:
    """Return the `DecoderConfig` that a gin file in `configs/models` describes.

    Arguments as the fields of `DecoderConfig`; of a tokenizer that is trained, its size and special
    tokens are taken instead.

    Raises:
      AyaError: sizes that do not fit together.
    """
    return DecoderConfig(**locals())
