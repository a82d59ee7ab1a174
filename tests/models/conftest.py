from functools import partial

import jax
import pytest

from aya_jax.models.decoder import init_params

SIZES = {
    "vocab_size": 48,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# A small config.json of every family, with windows shorter than the texts of the tests.
FAMILIES = {
    "cohere": {"model_type": "cohere", "logit_scale": 0.5},
    "cohere with q/k norm and biases": {
        "model_type": "cohere",
        "use_qk_norm": True,
        "attention_bias": True,
    },
    "cohere2": {"model_type": "cohere2", "sliding_window": 5, "sliding_window_pattern": 3},
    "llama": {"model_type": "llama", "rope_scaling": LLAMA3, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "head_dim": 8, "sliding_window": 5},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": None},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 8,
        "query_pre_attn_scalar": 6,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "qwen2": {"model_type": "qwen2", "rope_scaling": YARN},
    "qwen2 with windows": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
}


@pytest.fixture(params=FAMILIES)
def family(request):
    """The small `config.json` of a family, each in turn."""
    return {**SIZES, **FAMILIES[request.param]}


@pytest.fixture(scope="session")
def quick_jit():
    """`jax.jit` for programs that run for a moment: compiling them well costs more than it saves."""
    return partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


@pytest.fixture(scope="session")
def fresh(quick_jit):
    """`init_params`, compiled as one program."""
    return quick_jit(init_params, static_argnums=0, static_argnames="reward_head")
