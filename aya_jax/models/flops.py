"""The floating-point operations that a model's mathematics asks for, counted from its configuration.

Counted are products of matrices, attention's too, as a multiplication and an addition each; not norms, softmax or
activations, nor what rematerialisation computes again. A backward pass costs twice its forward: one product for
the gradient of the inputs, one for that of the weights (arXiv 2204.02311, appendix B, defines model FLOPs
utilisation so). Of causal attention only the pairs that are seen count. A row counts as one document; packed
documents need less attention than that.
"""

from typing import NamedTuple

from aya_jax.models.architecture import ModelConfig
from aya_jax.models.config import DecoderConfig
from aya_jax.models.t5_config import T5Config


class Flops(NamedTuple):
    """Operations by what they multiply: weights, or queries with keys and shares with values."""

    weights: int
    attention: int

    @property
    def total(self) -> int:
        """Of both."""
        return self.weights + self.attention


def seen_pairs(queries: int, window: int | None = None, *, before: int = 0) -> int:
    """Return how many keys all queries of a row see together, causally.

    Args:
      queries: how many there are.
      window: how many positions each sees, its own included; None for all.
      before: positions of the row that come before the first query.
    """
    last = before + queries
    if window is None or window >= last:
        return (last * (last + 1) - before * (before + 1)) // 2
    growing = max(window - before, 0)
    return seen_pairs(growing, before=before) + (queries - growing) * window


def forward_flops(
    config: ModelConfig, rows: int, length: int, *, inputs: int = 0, logits: int | None = None
) -> Flops:
    """Return the operations of a forward pass.

    Args:
      config: the model.
      rows: of the batch.
      length: of each row; of an encoder-decoder's completions.
      inputs: of an encoder-decoder, the length of its prompts.
      logits: at how many places of the batch there are any; at all if absent. A reward model has none, and
        its scalar head does not count.
    """
    places = rows * length if logits is None else logits
    if isinstance(config, T5Config):
        body, hidden = _t5(config, length, inputs), config.d_model
    else:
        body, hidden = _decoder(config, length), config.hidden_size
    head = 2 * hidden * config.vocab_size * places
    return Flops(rows * body.weights + head, rows * body.attention)


def train_flops(
    config: ModelConfig,
    rows: int,
    length: int,
    *,
    inputs: int = 0,
    logits: int | None = None,
    frozen: bool = False,
) -> int:
    """Return the operations of a training step, forward and backward.

    Args:
      config, rows, length, inputs, logits: see `forward_flops`; of preference pairs both sides are rows.
      frozen: whether the matrices have no gradient of their own, as under LoRA, whose adapters are small
        and do not count.
    """
    forward = forward_flops(config, rows, length, inputs=inputs, logits=logits)
    return (2 if frozen else 3) * forward.weights + 3 * forward.attention


def decode_flops(config: ModelConfig, rows: int, prompt: int, new: int) -> int:
    """Return the operations of answering: each prompt is read, then each new token, and each has logits.

    Args:
      config: the model.
      rows: answered together.
      prompt: tokens of each prompt.
      new: tokens of each answer.
    """
    if isinstance(config, T5Config):
        return forward_flops(config, rows, new, inputs=prompt).total
    return forward_flops(config, rows, prompt + new, logits=rows * new).total


def _decoder(config: DecoderConfig, length: int) -> Flops:
    """Return the operations of a row in all layers."""
    d, f, n = config.hidden_size, config.intermediate_size, config.num_attention_heads
    queries, keys = n * config.head_dim, config.num_key_value_heads * config.head_dim
    weights = 2 * d * queries + 2 * d * keys
    experts = config.num_local_experts
    weights += 3 * d * f * config.num_experts_per_tok + d * experts if experts else 3 * d * f
    pairs = sum(seen_pairs(length, window) for window in config.windows)
    return Flops(2 * config.num_hidden_layers * weights * length, 4 * queries * pairs)


def _t5(config: T5Config, length: int, inputs: int) -> Flops:
    """Return the operations of a row in both stacks."""
    heads, d = config.num_heads * config.d_kv, config.d_model
    attention, mlp = 4 * d * heads, 3 * d * config.d_ff
    # Keys and values of what the decoder looks at are made at the places of the input.
    crossed = 2 * d * heads * (length + inputs)
    encoder = config.num_layers * (attention + mlp) * inputs
    decoder = config.num_decoder_layers * ((attention + mlp) * length + crossed)
    pairs = config.num_layers * inputs * inputs
    pairs += config.num_decoder_layers * (seen_pairs(length) + length * inputs)
    return Flops(2 * (encoder + decoder), 4 * heads * pairs)
