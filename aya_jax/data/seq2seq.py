"""Rows for an encoder-decoder: prompts for the one, completions for the other."""

from collections.abc import Iterable, Iterator

import numpy as np

from aya_jax.data.examples import TOKENS_AT_ONCE, Example, Layout
from aya_jax.errors import AyaError

# Documents that are packed together; more of them would save little and take longer to look through.
BLOCK = 8192


def pack_seq2seq(
    examples: Iterable[Example], *, length: int, start_id: int
) -> dict[str, np.ndarray]:
    """Pack examples into rows; see `packed_seq2seq`, also for its errors."""
    parts = list(packed_seq2seq(examples, length=length, start_id=start_id))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def packed_seq2seq(
    examples: Iterable[Example], *, length: int, start_id: int
) -> Iterator[dict[str, np.ndarray]]:
    """Pack examples into rows of `length` tokens on either side, the longest first; a few rows a time.

    A completion begins with `start_id`. A document is never split, and its prompt and its completion
    have one segment id, 0 is padding; positions restart in each document. Answers in a prompt are not
    learnt: the encoder reads them. Order is a function of the examples alone.

    Args:
      examples: tokenised.
      length: of the rows.
      start_id: what the decoder begins with.

    Returns:
      Arrays [R, length]: int32 `input_tokens`, `input_positions` and `input_segment_ids` of prompts;
      `tokens`, `positions`, `segment_ids` and `languages` of completions, and bool `mask`, True on
      what is learnt.

    Raises:
      AyaError: there is no example, or one is longer than a row.
    """
    inputs, outputs, languages = [], [], []
    for example in examples:
        inputs.append(np.array(example.prompt, np.int32))
        outputs.append(np.array([start_id, *example.completion], np.int32))
        languages.append(example.language)
    if not inputs:
        raise AyaError("there is nothing to train on: no example was given")
    sizes = np.array([list(map(len, pair)) for pair in zip(inputs, outputs, strict=True)])
    if sizes.max() > length:
        raise AyaError(
            f"an example of {sizes.max()} tokens does not fit rows of {length}; raise max_length"
        )
    rows = _fit_both(sizes, length)
    at_once = max(1, TOKENS_AT_ONCE // length)
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        members, counts = [i for row in some for i in row], [len(row) for row in some]
        arrays: dict[str, np.ndarray] = {}
        for side, documents in (("input_", inputs), ("", outputs)):
            layout = Layout([len(documents[i]) for i in members], counts, length)
            arrays |= {
                f"{side}tokens": layout.fill(np.concatenate([documents[i] for i in members])),
                f"{side}positions": layout.fill(layout.positions),
                f"{side}segment_ids": layout.fill(layout.segments),
            }
        arrays["languages"] = layout.fill(np.repeat([languages[i] for i in members], layout.sizes))
        yield {**arrays, "mask": arrays["positions"] > 0}


def _fit_both(sizes: np.ndarray, length: int) -> list[list[int]]:
    """Return rows of document numbers: the longest first, each to the row that it fills best.

    Each block has as many long and short documents as another.

    Args:
      sizes: int [N, 2], tokens on either side.
      length: of a row, on either side.
    """
    rows: list[list[int]] = []
    order, least = np.argsort(-sizes.sum(1), kind="stable"), sizes.min(0)
    blocks = -(-len(order) // BLOCK)
    for block in range(blocks):
        # Of the rows that are still filled: their numbers, and the space that is left on either side.
        numbers, spaces = np.zeros(0, int), np.zeros((0, 2), int)
        for i in order[block::blocks].tolist():
            left = spaces - sizes[i]
            fitting = np.flatnonzero((left >= 0).all(1))
            if len(fitting):
                best = fitting[np.argmin(left[fitting].sum(1))]
                rows[numbers[best]].append(i)
                spaces[best] = left[best]
                if (left[best] < least).any():
                    numbers, spaces = np.delete(numbers, best), np.delete(spaces, best, axis=0)
            else:
                numbers = np.append(numbers, len(rows))
                spaces = np.append(spaces, [length - sizes[i]], axis=0)
                rows.append([i])
    return rows
