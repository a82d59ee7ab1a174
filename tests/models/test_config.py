"""`config.json` of both vintages, read, refused by name, and written again."""

import json

import pytest

from aya_jax.errors import AyaError
from aya_jax.models.config import FULL, SLIDING, DecoderConfig, decoder_config

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(**fields):
    return DecoderConfig.from_hf({**SIZES, **fields})


def test_what_is_written_is_read_as_the_same(family):
    config = DecoderConfig.from_hf(family)
    for reward in (False, True):
        written = json.loads(json.dumps(config.to_hf(reward=reward)))
        assert DecoderConfig.from_hf(written) == config
        assert hash(DecoderConfig.from_hf(written)) == hash(config)


@pytest.mark.parametrize(
    ("hub", "since"),
    [
        (
            {
                "model_type": "llama",
                "rope_theta": 5e5,
                "rope_scaling": {"rope_type": "llama3", **LLAMA3},
            },
            {
                "model_type": "llama",
                "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3},
            },
        ),
        (
            {
                "model_type": "qwen2",
                "rope_theta": 1e6,
                "rope_scaling": {"type": "linear", "factor": 2},
            },
            {
                "model_type": "qwen2",
                "rope_parameters": {"rope_theta": 1e6, "rope_type": "linear", "factor": 2},
            },
        ),
        (
            {"model_type": "cohere2", "sliding_window_pattern": 2, "rope_theta": 5e4},
            {
                "model_type": "cohere2",
                "layer_types": [SLIDING, FULL, SLIDING, FULL],
                "rope_parameters": {"rope_theta": 5e4, "rope_type": "default"},
            },
        ),
        (
            {
                "model_type": "gemma2",
                "hidden_act": "gelu",
                "hidden_activation": "gelu_pytorch_tanh",
            },
            {"model_type": "gemma2", "layer_types": [SLIDING, FULL, SLIDING, FULL]},
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 3},
            {
                "model_type": "qwen3",
                "use_sliding_window": True,
                "layer_types": [FULL, FULL, FULL, SLIDING],
            },
        ),
    ],
)
def test_both_vintages_say_the_same(hub, since):
    assert read(**hub) == read(**since)


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"model_type": "cohere2", "sliding_window": 7}, (7, 7, 7, None)),
        ({"model_type": "gemma2", "sliding_window": 7}, (7, None, 7, None)),
        ({"model_type": "mistral", "sliding_window": 7}, (7,) * 4),
        ({"model_type": "mistral"}, (4096,) * 4),
        ({"model_type": "mistral", "sliding_window": None}, (None,) * 4),
        ({"model_type": "mixtral"}, (None,) * 4),
        # The published files of Qwen2.5 name a window that they do not use.
        ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": False}, (None,) * 4),
        ({"model_type": "llama", "sliding_window": 7}, (None,) * 4),
    ],
)
def test_what_each_layer_sees(fields, windows):
    assert read(**fields).windows == windows


def test_what_the_file_says_beside_is_written_again():
    config = read(model_type="llama", torch_dtype="bfloat16", transformers_version="4.40.0")
    written = config.to_hf()
    assert written["torch_dtype"] == "bfloat16" and written["transformers_version"] == "4.40.0"
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert config == read(model_type="llama")
    # A window that is named and not used stays as it was named.
    qwen = read(model_type="qwen2", sliding_window=131072, use_sliding_window=False).to_hf()
    assert qwen["sliding_window"] == 131072 and qwen["use_sliding_window"] is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "lama"}, "model_type 'lama' is not supported; did you mean 'llama'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type 'longrope'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "needs 'low_freq_factor'"),
        ({"rope_scaling": {"type": "linear"}}, "needs 'factor'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "for each type of layer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu' is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config="),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"hidden_size": 30}, "no multiple of num_attention_heads"),
        ({"head_dim": 7}, "must be even"),
        ({"model_type": "gemma2", "layer_types": [FULL] * 3}, "names 3 layers"),
        ({"model_type": "gemma2", "layer_types": ["chunked"] * 4}, "'chunked' is not supported"),
        ({"model_type": "cohere2", "sliding_window": None}, "needs a sliding_window"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok 9"),
        ({"hidden_size": "32"}, "hidden_size"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, message):
    with pytest.raises(AyaError) as told:
        DecoderConfig.from_hf({"model_type": "llama", **SIZES, **fields}, "here/config.json")
    assert message in str(told.value) and str(told.value).startswith("here/config.json")


def test_a_gin_file_describes_any_family():
    config = decoder_config(
        model_type="gemma2", options={"sliding_window": 9, "head_dim": 8}, **SIZES
    )
    assert config.windows == (9, None, 9, None) and config.head_dim == 8
    with pytest.raises(AyaError, match="llama has no option 'logit_scal'"):
        decoder_config(model_type="llama", options={"logit_scal": 1.0}, **SIZES)
