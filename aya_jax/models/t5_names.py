"""The tensors of an mT5 checkpoint, and where each is in the parameters.

Source: the published checkpoints of mT5, and transformers' `modeling_mt5.py`.
"""

from collections.abc import Iterator

from aya_jax.models.names import Axes, HFTensor, linear, whole
from aya_jax.models.t5_config import T5Config


def t5_tensors(config: T5Config) -> Iterator[HFTensor]:
    """Yield every tensor of the checkpoint, in the order of its layers."""
    vocabulary = (config.vocab_size, config.d_model)
    yield whole("shared.weight", ("embedding",), vocabulary)
    for stack, layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        for layer in range(layers):
            yield from _block(config, stack, layer)
        yield whole(
            f"{stack}.final_layer_norm.weight", (stack, "final_norm", "weight"), vocabulary[1:]
        )
    yield whole("lm_head.weight", ("output",), vocabulary)


def _block(config: T5Config, stack: str, layer: int) -> Iterator[HFTensor]:
    c = config
    d, n, h = c.d_model, c.num_heads, c.d_kv

    def matrix(name: str, leaf: str, inputs: Axes, outputs: Axes) -> HFTensor:
        path = (stack, "layers", *leaf.split("/"))
        name = f"{stack}.block.{layer}.layer.{name}.weight"
        return linear(name, path, (layer,), inputs, outputs)

    def norm(place: int, leaf: str) -> HFTensor:
        name = f"{stack}.block.{layer}.layer.{place}.layer_norm.weight"
        return HFTensor(name, (d,), (stack, "layers", leaf, "weight"), (layer,), (d,), False)

    def heads(name: str, under: str) -> Iterator[HFTensor]:
        for leaf in "qkv":
            yield matrix(f"{name}.{leaf}", under + leaf, (d,), (n, h))
        yield matrix(f"{name}.o", f"{under}o", (n, h), (d,))

    yield from heads("0.SelfAttention", "")
    if layer == 0:
        name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield whole(name, (stack, "relative_bias"), (c.relative_attention_num_buckets, n))
    yield norm(0, "input_norm")
    if stack == "decoder":
        yield from heads("1.EncDecAttention", "cross/")
        yield norm(1, "cross_norm")
    last = 2 if stack == "decoder" else 1
    yield matrix(f"{last}.DenseReluDense.wi_0", "gate", (d,), (c.d_ff,))
    yield matrix(f"{last}.DenseReluDense.wi_1", "up", (d,), (c.d_ff,))
    yield matrix(f"{last}.DenseReluDense.wo", "down", (c.d_ff,), (d,))
    yield norm(last, "mlp_norm")
