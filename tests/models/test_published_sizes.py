"""The real configs, by abstract evaluation: nothing of that size is made."""

import jax
import numpy as np
import pytest

from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import init_params, logical_axes
from aya_jax.models.names import hf_tensors

COHERE = {
    "model_type": "cohere",
    "vocab_size": 256000,
    "num_key_value_heads": 8,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
    "use_qk_norm": False,
}
GEMMA = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "max_position_embeddings": 131072,
    "eos_token_id": [128001, 128008, 128009],
}
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}


def sizes(hidden, intermediate, layers, heads, kv=None, head_dim=None, vocab=None):
    """Return the fields of a config, those that are None left out."""
    given = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": head_dim,
        "vocab_size": vocab,
    }
    return {name: value for name, value in given.items() if value is not None}


# The published config.json of each model, and the number of parameters that its model page counts
# in its safetensors files; of Cohere's, which are gated, the number that the name rounds.
PUBLISHED = {
    "aya-expanse-8b": ({**COHERE, **sizes(4096, 14336, 32, 32)}, 8_028_033_024),
    "aya-expanse-32b": ({**COHERE, **sizes(8192, 24576, 40, 64)}, 32_296_476_672),
    "aya-23-8B": ({**COHERE, **sizes(4096, 14336, 32, 32)}, 8_028_033_024),
    "aya-23-35B": ({**COHERE, **sizes(8192, 22528, 40, 64, kv=64)}, 34_980_831_232),
    "c4ai-command-r-plus": (
        {**COHERE, **sizes(12288, 33792, 64, 96), "use_qk_norm": True},
        103_810_674_688,
    ),
    "gemma-2-9b-it": (
        {**GEMMA, **sizes(3584, 14336, 42, 16, 8, 256), "query_pre_attn_scalar": 256},
        9_241_705_984,
    ),
    "gemma-2-27b-it": (
        {**GEMMA, **sizes(4608, 36864, 46, 32, 16, 128), "query_pre_attn_scalar": 144},
        27_227_128_320,
    ),
    "Llama-3.1-8B-Instruct": ({**LLAMA, **sizes(4096, 14336, 32, 32)}, 8_030_261_248),
    "Llama-3.1-70B-Instruct": ({**LLAMA, **sizes(8192, 28672, 80, 64)}, 70_553_706_496),
    "Ministral-8B-Instruct-2410": (
        {
            "model_type": "mistral",
            **sizes(4096, 12288, 36, 32, 8, 128, 131072),
            "sliding_window": 32768,
        },
        8_019_808_256,
    ),
    "Mixtral-8x22B-v0.1": (
        {**MIXTRAL, **sizes(6144, 16384, 56, 48, 8, vocab=32000)},
        140_620_634_112,
    ),
    "Mixtral-8x22B-Instruct-v0.1": (
        {**MIXTRAL, **sizes(6144, 16384, 56, 48, 8, vocab=32768)},
        140_630_071_296,
    ),
    "Qwen2.5-7B-Instruct": (
        {"model_type": "qwen2", **sizes(3584, 18944, 28, 28, 4, vocab=152064)},
        7_615_616_512,
    ),
    "Qwen3-8B": (
        {"model_type": "qwen3", **sizes(4096, 12288, 36, 32, 8, 128, 151936)},
        8_190_735_360,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_number_of_parameters(name):
    published, count = PUBLISHED[name]
    config = DecoderConfig.from_hf(published)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    # The checkpoint's tensors fill the leaves, each place once.
    leaves = {
        tuple(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    filled = dict.fromkeys(leaves, 0)
    places = set()
    for tensor in hf_tensors(config):
        assert np.prod(tensor.shape) == np.prod(tensor.part)
        assert (*leaves[tensor.leaf].shape[: len(tensor.index)], *tensor.part) == leaves[
            tensor.leaf
        ].shape
        filled[tensor.leaf] += int(np.prod(tensor.part))
        places.add((tensor.leaf, tensor.index))
    assert filled == {path: leaf.size for path, leaf in leaves.items()}
    assert len(places) == len(hf_tensors(config))
    axes = logical_axes(config)
    jax.tree.map(
        lambda leaf, spec: pytest.fail(str(spec)) if len(spec) != leaf.ndim else None, shapes, axes
    )
