"""The tiny models that the goldens of mergekit were made of, and what was asked of it."""

import zlib

import numpy as np

CONFIGS = {
    "cohere": {
        "model_type": "cohere",
        "architectures": ["CohereForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "rope_theta": 10000.0,
        "use_qk_norm": True,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 5,
        "eos_token_id": 7,
    },
    "llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}

THREE, TWO = ("a", "b", "c"), ("a", "b")
WEIGHTS = {"weight": (0.5, 0.3, 0.2)}
UNEVEN = {"weight": (0.8, -0.3, 1.1)}
# The method; the models; the base; mergekit's parameters for the merge, and for each model.
CASES = {
    "linear": ("linear", THREE, None, {"normalize": False}, WEIGHTS),
    "linear_normalized": ("linear", THREE, None, {"normalize": True}, {"weight": (1.0, 2.0, 3.0)}),
    "slerp": ("slerp", TWO, "a", {"t": 0.3}, {}),
    "slerp_near": ("slerp", ("a", "near"), "a", {"t": 0.3}, {}),
    "nuslerp": ("nuslerp", TWO, None, {}, {"weight": (0.3, 0.9)}),
    "nuslerp_base": ("nuslerp", TWO, "base", {}, {"weight": (0.3, 0.9)}),
    "karcher": ("karcher", THREE, None, {}, {}),
    "task_arithmetic": ("task_arithmetic", THREE, "base", {"lambda": 0.7}, UNEVEN),
    "task_arithmetic_normalized": ("task_arithmetic", THREE, "base", {"normalize": True}, UNEVEN),
    "ties": ("ties", THREE, "base", {}, {**WEIGHTS, "density": (0.4, 0.2, 1.0)}),
    "ties_sum": ("ties", THREE, "base", {"normalize": False}, {**UNEVEN, "density": (0.5,) * 3}),
    "breadcrumbs": (
        *("breadcrumbs", THREE, "base", {}),
        {**WEIGHTS, "density": (0.6, 0.3, 0.95), "gamma": (0.1,) * 3},
    ),
    "breadcrumbs_ties": (
        *("breadcrumbs_ties", THREE, "base", {"lambda": 1.2}),
        {**WEIGHTS, "density": (0.6,) * 3, "gamma": (0.05,) * 3},
    ),
    "dare_linear": (
        *("dare_linear", THREE, "base", {"rescale": False}),
        {**WEIGHTS, "density": (0.5, 0.7, 1.0)},
    ),
    "dare_ties": (
        *("dare_ties", THREE, "base", {"rescale": False}),
        {**UNEVEN, "density": (0.5, 0.7, 0.2)},
    ),
    "della_linear": (
        *("della_linear", THREE, "base", {"rescale": False}),
        {**WEIGHTS, "density": (0.5, 0.7, 1.0), "epsilon": (0.2, 0.1, 0.1)},
    ),
    "della": (
        *("della", THREE, "base", {"rescale": False}),
        {**WEIGHTS, "density": (0.5, 0.7, 0.4), "epsilon": (0.2, 0.1, 0.1)},
    ),
    "model_stock": ("model_stock", THREE, "base", {}, {}),
}


def entries(model, name, shape):
    """Return float32 of a shape: a tensor of a model, of the Hugging Face layout."""

    def drawn(of):
        return np.random.default_rng(zlib.crc32(f"{of}/{name}".encode())).standard_normal(shape)

    away = {"base": 0.0, "near": 0.0}.get(model, 0.1)
    value = 0.5 * drawn("base") + away * drawn(model)
    if model == "near":
        value = 0.5 * drawn("base") + 0.1 * drawn("a") + 1e-4 * drawn("near")
    return value.astype(np.float32)


def uniform(shape):
    """Return float32 of a shape in [0, 1): what entries are drawn by, the same for all tensors of that shape."""
    seed = zlib.crc32(repr(tuple(shape)).encode())
    return np.random.default_rng(seed).random(shape, np.float32)
