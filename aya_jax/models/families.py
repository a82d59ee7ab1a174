"""What the families of decoder differ in that no `config.json` says, and their own defaults.

Source: huggingface/transformers `models/<model_type>/{configuration,modeling}_<model_type>.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """The structure of one `model_type`.

    Attributes:
      architecture: of its classes, as in `CohereForCausalLM`.
      norm: `layer` subtracts the mean and has no bias; `rms` does not; `gemma` is `rms` with a
        factor of 1 + weight.
      block: `parallel`, x + attention(norm(x)) + mlp(norm(x)); `sequential`, first one and then the
        other, each with a norm before it; `sandwich`, with a norm after each too.
      interleaved: whether rotary pairs are (2i, 2i+1), not (i, i + H/2).
      rotary_everywhere: False where layers that see all positions have no rotary embedding.
      own_head_dim: whether the size of a head is a field, and does not follow from others.
      full_every: where windows alternate, one layer in so many sees all positions.
      full_every_name: what its `config.json` calls that, empty where it does not say it.
      query_bias: whether q, k and v always have a bias, the output of attention never.
      norm_eps_name, activation_name: what its `config.json` calls `norm_eps` and `hidden_act`.
      rope_theta, norm_eps, tied, activation, tokens: its defaults; `tokens` are pad, bos and eos.
      options: fields that only some families have, with this one's defaults.
    """

    architecture: str
    norm: Literal["layer", "rms", "gemma"] = "rms"
    block: Literal["parallel", "sequential", "sandwich"] = "sequential"
    interleaved: bool = False
    rotary_everywhere: bool = True
    own_head_dim: bool = True
    full_every: int = 0
    full_every_name: str = ""
    query_bias: bool = False
    norm_eps_name: str = "rms_norm_eps"
    activation_name: str = "hidden_act"
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    tied: bool = False
    activation: str = "silu"
    tokens: tuple[int | None, int | None, int | None] = (None, 1, 2)
    options: Mapping[str, Any] = field(default_factory=dict)


_COHERE: dict[str, Any] = {
    "norm": "layer",
    "block": "parallel",
    "interleaved": True,
    "own_head_dim": False,
    "norm_eps_name": "layer_norm_eps",
    "norm_eps": 1e-5,
    "tied": True,
    "tokens": (0, 5, 255001),
}
_QWEN: dict[str, Any] = {"use_sliding_window": False, "sliding_window": 4096, "layer_types": None}

FAMILIES: dict[str, Family] = {
    "cohere": Family(
        "Cohere",
        **_COHERE,
        rope_theta=500000.0,
        options={"logit_scale": 0.0625, "use_qk_norm": False, "attention_bias": False},
    ),
    "cohere2": Family(
        "Cohere2",
        **_COHERE,
        rotary_everywhere=False,
        full_every=4,
        full_every_name="sliding_window_pattern",
        options={
            "logit_scale": 0.0625,
            "attention_bias": False,
            "sliding_window": 4096,
            "layer_types": None,
        },
    ),
    "llama": Family("Llama", options={"attention_bias": False, "mlp_bias": False}),
    "mistral": Family("Mistral", options={"sliding_window": 4096}),
    "ministral": Family("Ministral", options={"sliding_window": 4096, "layer_types": None}),
    "mixtral": Family(
        "Mixtral",
        rope_theta=1000000.0,
        norm_eps=1e-5,
        options={"sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "gemma2": Family(
        "Gemma2",
        norm="gemma",
        block="sandwich",
        full_every=2,
        activation_name="hidden_activation",
        tied=True,
        activation="gelu_pytorch_tanh",
        tokens=(0, 2, 1),
        options={
            "head_dim": 256,
            "attention_bias": False,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "layer_types": None,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
        },
    ),
    "qwen2": Family("Qwen2", query_bias=True, tokens=(None, None, None), options=_QWEN),
    "qwen3": Family(
        "Qwen3",
        tokens=(None, None, None),
        options={"head_dim": 128, "attention_bias": False, "use_qk_norm": True, **_QWEN},
    ),
}
