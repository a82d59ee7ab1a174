"""What a row of training data asks for: tokens that are no padding, and the operations of its documents."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from aya_jax.models.flops import forward_flops, train_flops
from aya_jax.training.objectives import Objective

# The prompts of an encoder-decoder, beside the completions that have no prefix.
INPUTS = "input_"


class RowWork(NamedTuple):
    """Of one row (of preference data, one pair): real tokens, and FLOPs of training; means over the data."""

    tokens: float
    flops: float


def row_work(
    objective: Objective, arrays: Mapping[str, np.ndarray], *, frozen: bool = False
) -> RowWork:
    """Count what the data hold; whatever is computed for padding, or twice, is not counted.

    Attention is that within documents, logits are those of learnt tokens; see `models.flops`. A held
    reference adds its forward pass.

    Args:
      objective: what is trained, and on which model.
      arrays: training rows, as `training.loop.train` takes them.
      frozen: whether only adapters are trained, as with LoRA.
    """
    config, tokens, flops = objective.config, 0, 0

    def of_a_step(rows: int, length: int, **sizes: int) -> int:
        held = forward_flops(config, rows, length, **sizes).total if objective.held_reference else 0
        return train_flops(config, rows, length, frozen=frozen, **sizes) + held

    places = [name.removesuffix("tokens") for name in arrays if name.endswith("tokens")]
    for place in places:
        if place == INPUTS:
            continue
        sizes = _document_sizes(arrays[f"{place}segment_ids"], arrays.get(f"{INPUTS}segment_ids"))
        for (length, inputs), count in zip(
            *np.unique(sizes, axis=0, return_counts=True), strict=True
        ):
            tokens += int(count) * int(length + inputs)
            flops += int(count) * of_a_step(1, int(length), inputs=int(inputs), logits=0)
        if not objective.reward_head:
            learnt = int(np.count_nonzero(arrays[f"{place}mask"]))
            flops += of_a_step(0, 0, logits=learnt)
    rows = len(arrays[f"{places[0]}tokens"])
    return RowWork(tokens / rows, flops / rows)


def _document_sizes(segments: np.ndarray, inputs: np.ndarray | None) -> np.ndarray:
    """Return int [N, 2]: each document's tokens, and those of its prompt for an encoder."""
    most = int(max(segments.max(), 0 if inputs is None else inputs.max())) + 1

    def sizes(ids: np.ndarray) -> np.ndarray:
        # Row by row: numbers over all rows would be a copy of them all, in 64 bits.
        return np.stack([np.bincount(row, minlength=most)[1:] for row in ids])

    lengths = sizes(segments)
    pairs = np.stack([lengths, np.zeros_like(lengths) if inputs is None else sizes(inputs)], -1)
    return pairs[pairs.any(-1)]
