"""The configuration of a decoder, read from and written as the family's own `config.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gin

from aya_jax.errors import AyaError, nearest
from aya_jax.models.families import FAMILIES, Family
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
from aya_jax.models.layers import ACTIVATIONS
from aya_jax.models.rotary import RopeScaling, read_rope

FULL, SLIDING = "full_attention", "sliding_attention"

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_NUMBERS = (
    "head_dim",
    "norm_eps",
    "rope_theta",
    "sliding_window",
    "logit_scale",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "num_local_experts",
    "num_experts_per_tok",
    "initializer_range",
)
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
# Fields of a `config.json` that change the numbers, and the only value we compute with.
_NEUTRAL = {
    "quantization_config": None,
    "use_bidirectional_attention": False,
    "router_jitter_noise": 0.0,
    "is_decoder": True,
}


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and options of a decoder, named as in Hugging Face's `config.json`.

    `norm_eps` is `layer_norm_eps` or `rms_norm_eps` there, `hidden_act` is Gemma's
    `hidden_activation`. `rope_scaling` and `layer_types` hold what both vintages of the file say:
    `rope_theta`, `rope_scaling` and `sliding_window_pattern` before transformers 5,
    `rope_parameters` and `layer_types` since. `other` is JSON text of all that was in the file, so
    that it is written again; it plays no part in comparisons.

    Without a `model_type` it is a Cohere decoder. What `model_type` says beyond the fields is in
    `family`.

    Raises:
      AyaError: sizes that do not fit together, or an option that is not supported.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    model_type: str = "cohere"
    head_dim: int = 0
    hidden_act: str = "silu"
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 8192
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    logit_scale: float = 0.0625
    use_qk_norm: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    num_local_experts: int = 0
    num_experts_per_tok: int = 2
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = 5
    eos_token_id: int | tuple[int, ...] | None = 255001
    other: str = field(default="{}", compare=False, repr=False)

    def __post_init__(self) -> None:
        require_sizes(self, (*_SIZES, "num_key_value_heads", "max_position_embeddings"))
        require_numbers(self, (name for name in _NUMBERS if getattr(self, name) is not None))
        if not self.head_dim:
            if self.hidden_size % self.num_attention_heads:
                raise AyaError(
                    f"config: hidden_size {self.hidden_size} is no multiple of "
                    f"num_attention_heads {self.num_attention_heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if not self.layer_types:
            kind = FULL if self.sliding_window is None else SLIDING
            object.__setattr__(self, "layer_types", (kind,) * self.num_hidden_layers)
        self._check()

    def _check(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise AyaError(
                f"config: num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise AyaError(
                f"config: the head size {self.head_dim} must be even for rotary embedding"
            )
        if self.hidden_act not in ACTIVATIONS:
            hint = nearest(str(self.hidden_act), ACTIVATIONS)
            raise AyaError(f"config: activation {self.hidden_act!r} is not supported{hint}")
        if len(self.layer_types) != self.num_hidden_layers:
            raise AyaError(
                f"config: layer_types names {len(self.layer_types)} layers, num_hidden_layers is "
                f"{self.num_hidden_layers}"
            )
        for kind in self.layer_types:
            if kind not in (FULL, SLIDING):
                hint = nearest(str(kind), [FULL, SLIDING])
                raise AyaError(f"config: layer_types: {kind!r} is not supported{hint}")
        if SLIDING in self.layer_types and not (self.sliding_window or 0) > 0:
            raise AyaError(f"config: {SLIDING} needs a sliding_window, not {self.sliding_window}")
        if self.num_local_experts and not 0 < self.num_experts_per_tok <= self.num_local_experts:
            raise AyaError(
                f"config: num_experts_per_tok {self.num_experts_per_tok} does not fit "
                f"num_local_experts {self.num_local_experts}"
            )

    @property
    def family(self) -> Family:
        """What the family does that is no field."""
        return FAMILIES[self.model_type]

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The number of positions that each layer sees, None for all."""
        return tuple(self.sliding_window if t == SLIDING else None for t in self.layer_types)

    @property
    def attention_scale(self) -> float:
        """The factor of attention scores."""
        return float(self.query_pre_attn_scalar or self.head_dim) ** -0.5

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens of `eos_token_id`."""
        return ids_of(self.eos_token_id)

    def to_hf(self, *, reward: bool = False) -> dict[str, Any]:
        """Return the `config.json` of this decoder, `reward` for one with a scalar head."""
        family = self.family
        other = json.loads(self.other)
        for name in ("rope_parameters", "num_labels", "id2label", "label2id"):
            other.pop(name, None)
        head = "SequenceClassification" if reward else "CausalLM"
        named = {
            family.norm_eps_name: self.norm_eps,
            family.activation_name: self.hidden_act,
            "num_key_value_heads": self.num_key_value_heads,
            "tie_word_embeddings": self.tie_word_embeddings,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling and self.rope_scaling.to_hf(),
        }
        if family.own_head_dim:
            named["head_dim"] = self.head_dim
        for name in (*_SIZES, *_TOKENS, "max_position_embeddings", "initializer_range"):
            named[name] = getattr(self, name)
        for name in family.options:
            if name == "use_sliding_window":
                named[name] = SLIDING in self.layer_types
            else:
                named[name] = getattr(self, name)
        if reward:
            named |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        whole = {
            **other,
            "architectures": [f"{family.architecture}For{head}"],
            "model_type": self.model_type,
            **named,
        }
        return jsonable(whole)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> "DecoderConfig":
        """Read a `config.json`; whatever it asks for that is not supported is refused by name.

        Raises:
          AyaError: an unsupported family or option, or a missing size.
        """
        name = config.get("model_type")
        if name not in FAMILIES:
            raise AyaError(
                f"{where}: model_type {name!r} is not supported{nearest(str(name), FAMILIES)}"
            )
        family = FAMILIES[name]
        for option, value in _NEUTRAL.items():
            if config.get(option) not in (None, value):
                raise AyaError(f"{where}: {option}={config[option]!r} is not supported")
        require_given(config, _SIZES, where)
        get = partial(given, config)
        values: dict[str, Any] = {size: config[size] for size in _SIZES}
        values["num_key_value_heads"] = get("num_key_value_heads", config["num_attention_heads"])
        values["max_position_embeddings"] = get("max_position_embeddings", 8192)
        values["initializer_range"] = get("initializer_range", 0.02)
        values["norm_eps"] = get(family.norm_eps_name, family.norm_eps)
        values["hidden_act"] = get(family.activation_name, family.activation)
        values["tie_word_embeddings"] = get("tie_word_embeddings", family.tied)
        if family.own_head_dim:
            values["head_dim"] = config.get("head_dim") or 0
        for token, default in zip(_TOKENS, family.tokens, strict=True):
            values[token] = hashable(config.get(token, default))
        values["rope_theta"], values["rope_scaling"] = read_rope(
            config,
            theta=family.rope_theta,
            positions=values["max_position_embeddings"],
            where=where,
        )
        values["logit_scale"] = 1.0
        for option, default in family.options.items():
            values[option] = config.get(option, default)
        values["layer_types"] = _layer_types(config, values, family)
        values.pop("use_sliding_window", None)
        for option in ("attention_bias", "mlp_bias", "use_qk_norm"):
            if option in values:
                values[option] = bool(values[option])
        with told_of(where):
            return cls(**values, model_type=name, other=json.dumps(dict(config), sort_keys=True))


def _layer_types(
    config: Mapping[str, Any], values: Mapping[str, Any], family: Family
) -> tuple[str, ...]:
    """Return what each layer sees, by the list where there is one, else by the family's rule."""
    layers, window = values["num_hidden_layers"], values.get("sliding_window")
    if "layer_types" in family.options and config.get("layer_types"):
        return tuple(config["layer_types"])
    if "use_sliding_window" in family.options:
        first = config.get("max_window_layers", 28) if values["use_sliding_window"] else layers
        return tuple(SLIDING if window and i >= first else FULL for i in range(layers))
    if family.full_every:
        every = config.get(family.full_every_name, family.full_every)
        return tuple(SLIDING if (i + 1) % every else FULL for i in range(layers))
    return (SLIDING if window else FULL,) * layers


@gin.configurable
def decoder_config(
    *,
    model_type: str = "cohere",
    vocab_size: int = gin.REQUIRED,
    hidden_size: int = gin.REQUIRED,
    intermediate_size: int = gin.REQUIRED,
    num_hidden_layers: int = gin.REQUIRED,
    num_attention_heads: int = gin.REQUIRED,
    num_key_value_heads: int = gin.REQUIRED,
    rope_theta: float = 10000.0,
    max_position_embeddings: int = 8192,
    initializer_range: float = 0.02,
    pad_token_id: int | None = 0,
    bos_token_id: int | None = 5,
    eos_token_id: int | None = 255001,
    options: Mapping[str, Any] | None = None,
) -> DecoderConfig:
    """Return the `DecoderConfig` that a gin file in `configs/models` describes.

    Arguments as the fields of the family's `config.json`; `options` holds those that only some
    families have, such as `logit_scale` or `sliding_window`. Of a tokenizer that is trained, its
    size and special tokens are taken instead.

    Raises:
      AyaError: sizes that do not fit together, or an option that the family does not have.
    """
    fields = dict(locals())
    own = fields.pop("options") or {}
    family = FAMILIES.get(model_type)
    if family is not None:
        known = {
            *family.options,
            *("head_dim", "rope_scaling", "tie_word_embeddings", "sliding_window_pattern"),
            *(family.norm_eps_name, family.activation_name, "max_window_layers"),
        }
        for name in own:
            if name not in known:
                hint = nearest(str(name), known)
                raise AyaError(f"decoder_config.options: {model_type} has no option {name!r}{hint}")
    return DecoderConfig.from_hf({**fields, **own}, "decoder_config")
