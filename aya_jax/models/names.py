"""The tensors of a Hugging Face checkpoint, and where each is in the parameters.

Source: the published checkpoints of each family, and transformers' `modeling_<model_type>.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from aya_jax.models.config import DecoderConfig

Axes = tuple[int, ...]


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

    def as_filed(self) -> "HFTensor":
        """Return it with the entries in the order of the file, as if we kept them so."""
        return replace(self, part=self.shape, transpose=False)

    def to_leaf(self, array: np.ndarray) -> np.ndarray:
        """Return the slice of the leaf, of shape `part`, that a tensor of `shape` is."""
        return (array.T if self.transpose else array).reshape(self.part)

    def from_leaf(self, array: np.ndarray) -> np.ndarray:
        """Return the tensor, of shape `shape`, that a slice of the leaf is."""
        return array.reshape(self.shape[::-1]).T if self.transpose else array.reshape(self.shape)


def whole(name: str, leaf: tuple[str, ...], shape: tuple[int, ...]) -> HFTensor:
    """Return the tensor that is a leaf as it stands."""
    return HFTensor(name, shape, leaf, (), shape, False)


def linear(
    name: str,
    leaf: tuple[str, ...],
    index: tuple[int, ...],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
) -> HFTensor:
    """Return the weight of a Linear, of which we keep the axes of heads apart."""
    shape = (math.prod(outputs), math.prod(inputs))
    return HFTensor(name, shape, leaf, index, inputs + outputs, True)


def hf_tensors(config: DecoderConfig, *, reward: bool = False) -> tuple[HFTensor, ...]:
    """Return every tensor of the checkpoint of a model, in the order of its layers.

    Args:
      config: of the model.
      reward: whether it has a scalar head, `score`, in place of one over the vocabulary.
    """
    return tuple(_tensors(config, reward))


def _tensors(config: DecoderConfig, reward: bool) -> Iterator[HFTensor]:
    vocabulary = (config.vocab_size, config.hidden_size)
    yield whole("model.embed_tokens.weight", ("embedding",), vocabulary)
    for layer in range(config.num_hidden_layers):
        yield from _layer(config, layer)
    yield whole("model.norm.weight", ("final_norm", "weight"), vocabulary[1:])
    if reward:
        shape = (1, config.hidden_size)
        yield HFTensor("score.weight", shape, ("score",), (), shape[1:], False)
    elif not config.tie_word_embeddings:
        yield whole("lm_head.weight", ("output",), vocabulary)


def _layer(config: DecoderConfig, layer: int) -> Iterator[HFTensor]:
    c, family = config, config.family
    d, f, h = c.hidden_size, c.intermediate_size, c.head_dim
    n, k = c.num_attention_heads, c.num_key_value_heads

    def place(name: str, *leaf: str) -> tuple[str, tuple[str, ...]]:
        return f"model.layers.{layer}.{name}", ("layers", "block", *leaf)

    def matrix(name: str, leaf: str, inputs: Axes, outputs: Axes, *expert: int) -> HFTensor:
        return linear(*place(f"{name}.weight", leaf), (layer, *expert), inputs, outputs)

    def bias(name: str, leaf: str, part: Axes) -> HFTensor:
        shape = (math.prod(part),)
        name, path = place(f"{name}.bias", f"{leaf}_bias")
        return HFTensor(name, shape, path, (layer,), part, False)

    def norm(name: str, leaf: str, part: Axes = (d,)) -> HFTensor:
        name, path = place(f"{name}.weight", leaf, "weight")
        return HFTensor(name, part, path, (layer,), part, False)

    yield norm("input_layernorm", "input_norm")
    sizes: dict[str, tuple[Axes, Axes]] = {
        "q": ((d,), (n, h)),
        "k": ((d,), (k, h)),
        "v": ((d,), (k, h)),
        "o": ((n, h), (d,)),
    }
    for leaf, (inputs, outputs) in sizes.items():
        name = f"self_attn.{leaf}_proj"
        yield matrix(name, leaf, inputs, outputs)
        if c.attention_bias or (family.query_bias and leaf != "o"):
            yield bias(name, leaf, outputs)
    if c.use_qk_norm:
        own = family.norm == "layer"
        yield norm("self_attn.q_norm", "q_norm", (n, h) if own else (h,))
        yield norm("self_attn.k_norm", "k_norm", (k, h) if own else (h,))
    if family.block == "sequential":
        yield norm("post_attention_layernorm", "mlp_norm")
    elif family.block == "sandwich":
        yield norm("post_attention_layernorm", "attention_out_norm")
        yield norm("pre_feedforward_layernorm", "mlp_norm")
        yield norm("post_feedforward_layernorm", "mlp_out_norm")
    sizes = {"gate": ((d,), (f,)), "up": ((d,), (f,)), "down": ((f,), (d,))}
    if not c.num_local_experts:
        for leaf, (inputs, outputs) in sizes.items():
            yield matrix(f"mlp.{leaf}_proj", leaf, inputs, outputs)
            if c.mlp_bias:
                yield bias(f"mlp.{leaf}_proj", leaf, outputs)
        return
    yield matrix("block_sparse_moe.gate", "router", (d,), (c.num_local_experts,))
    for expert in range(c.num_local_experts):
        for name, leaf in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            yield matrix(f"block_sparse_moe.experts.{expert}.{name}", leaf, *sizes[leaf], expert)
