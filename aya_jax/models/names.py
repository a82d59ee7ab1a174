"""The tensors of a Hugging Face checkpoint, and where each is in the parameters.

Source: the published checkpoints of each family, and transformers' `modeling_<model_type>.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from aya_jax.models.config import DecoderConfig


@dataclass(frozen=True)
class HFTensor:
    """One tensor of a Hugging Face checkpoint and its place in the parameters.

    Attributes:
      name: as in the safetensors file.
      shape: as in the safetensors file.
      leaf: path of the leaf in the parameters.
      index: of the leaf's first axes that this tensor fills: (), (layer,) or (layer, expert).
      part: the shape of that slice of the leaf.
      transpose: whether it is the weight of a Linear, [out, in], and we keep [in, out].
    """

    name: str
    shape: tuple[int, ...]
    leaf: tuple[str, ...]
    index: tuple[int, ...]
    part: tuple[int, ...]
    transpose: bool

    def to_leaf(self, array: np.ndarray) -> np.ndarray:
        """Return the slice of the leaf, of shape `part`, that a tensor of `shape` is."""
        return (array.T if self.transpose else array).reshape(self.part)

    def from_leaf(self, array: np.ndarray) -> np.ndarray:
        """Return the tensor, of shape `shape`, that a slice of the leaf is."""
        return array.reshape(self.shape[::-1]).T if self.transpose else array.reshape(self.shape)


def hf_tensors(config: DecoderConfig, *, reward: bool = False) -> tuple[HFTensor, ...]:
    """Return every tensor of the checkpoint of a model, in the order of its layers.

    Args:
      config: of the model.
      reward: whether it has a scalar head, `score`, in place of one over the vocabulary.
    """
    return tuple(_tensors(config, reward))


def _tensors(config: DecoderConfig, reward: bool) -> Iterator[HFTensor]:
    vocabulary = (config.vocab_size, config.hidden_size)

    def whole(name: str, leaf: tuple[str, ...], shape: tuple[int, ...]) -> HFTensor:
        part = shape[1:] if leaf == ("score",) else shape
        return HFTensor(name, shape, leaf, (), part, False)

    yield whole("model.embed_tokens.weight", ("embedding",), vocabulary)
    for layer in range(config.num_hidden_layers):
        yield from _layer(config, layer)
    yield whole("model.norm.weight", ("final_norm", "weight"), vocabulary[1:])
    if reward:
        yield whole("score.weight", ("score",), (1, config.hidden_size))
    elif not config.tie_word_embeddings:
        yield whole("lm_head.weight", ("output",), vocabulary)


def _layer(config: DecoderConfig, layer: int) -> Iterator[HFTensor]:
    c, family = config, config.family
    d, f, h = c.hidden_size, c.intermediate_size, c.head_dim
    n, k = c.num_attention_heads, c.num_key_value_heads

    def tensor(name: str, leaf: str, part: tuple[int, ...], outputs: int = 0, **place: Any) -> Any:
        """A vector, or with `outputs` a Linear whose weight has that many output axes."""
        index = (layer, *place.values())
        shape = part
        if outputs:
            split = len(part) - outputs
            shape = (int(np.prod(part[split:])), int(np.prod(part[:split])))
        elif leaf.endswith("bias"):
            shape = (int(np.prod(part)),)
        path = ("layers", "block", *leaf.split("/"))
        return HFTensor(f"model.layers.{layer}.{name}", shape, path, index, part, bool(outputs))

    yield tensor("input_layernorm.weight", "input_norm/weight", (d,))
    sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "q": ((d,), (n, h)),
        "k": ((d,), (k, h)),
        "v": ((d,), (k, h)),
        "o": ((n, h), (d,)),
    }
    for leaf, (inputs, outputs) in sizes.items():
        name = f"self_attn.{leaf}_proj"
        yield tensor(f"{name}.weight", leaf, inputs + outputs, len(outputs))
        if c.attention_bias or (family.query_bias and leaf != "o"):
            yield tensor(f"{name}.bias", f"{leaf}_bias", outputs)
    if c.use_qk_norm:
        own = family.norm == "layer"
        yield tensor("self_attn.q_norm.weight", "q_norm/weight", (n, h) if own else (h,))
        yield tensor("self_attn.k_norm.weight", "k_norm/weight", (k, h) if own else (h,))
    if family.block == "sequential":
        yield tensor("post_attention_layernorm.weight", "mlp_norm/weight", (d,))
    elif family.block == "sandwich":
        yield tensor("post_attention_layernorm.weight", "attention_out_norm/weight", (d,))
        yield tensor("pre_feedforward_layernorm.weight", "mlp_norm/weight", (d,))
        yield tensor("post_feedforward_layernorm.weight", "mlp_out_norm/weight", (d,))
    matrices = {"gate": (d, f), "up": (d, f), "down": (f, d)}
    if not c.num_local_experts:
        for leaf, part in matrices.items():
            yield tensor(f"mlp.{leaf}_proj.weight", leaf, part, 1)
            if c.mlp_bias:
                yield tensor(f"mlp.{leaf}_proj.bias", f"{leaf}_bias", part[1:])
        return
    yield tensor("block_sparse_moe.gate.weight", "router", (d, c.num_local_experts), 1)
    for expert in range(c.num_local_experts):
        for name, leaf in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            place = f"block_sparse_moe.experts.{expert}.{name}.weight"
            yield tensor(place, leaf, matrices[leaf], 1, expert=expert)
