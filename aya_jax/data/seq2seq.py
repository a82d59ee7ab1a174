"""Rows for an encoder-decoder: prompts for the one, completions for the other."""

from collections.abc import Sequence

import numpy as np

from aya_jax.data.examples import Example, lay_out
from aya_jax.errors import AyaError

# Rows that are still filled; more of them would save little and take longer to look through.
OPEN_ROWS = 64


def pack_seq2seq(
    examples: Sequence[Example], *, length: int, start_id: int
) -> dict[str, np.ndarray]:
    """Pack examples into rows of `length` tokens on either side, the longest first.

    A completion begins with `start_id`. A document is never split, and its prompt and its completion
    have one segment id, 0 is padding; positions restart in each document. Answers in a prompt are not
    learnt: the encoder reads them. Order is a function of the examples alone.

    Args:
      examples: tokenised.
      length: of the rows.
      start_id: what the decoder begins with.

    Returns:
      Arrays [R, length]: int32 `input_tokens`, `input_positions` and `input_segment_ids` of prompts;
      `tokens`, `positions` and `segment_ids` of completions, and bool `mask`, True on what is learnt.

    Raises:
      AyaError: there is no example, or one is longer than a row.
    """
    if not examples:
        raise AyaError("there is nothing to train on: no example was given")
    sizes = np.array([(len(e.prompt), 1 + len(e.completion)) for e in examples])
    if sizes.max() > length:
        raise AyaError(
            f"an example of {sizes.max()} tokens does not fit rows of {length}; raise max_length"
        )
    rows: list[list[int]] = []
    spaces: dict[int, np.ndarray] = {}
    for i in sorted(range(len(examples)), key=lambda i: (-sizes[i].sum(), i)):
        row = next((r for r, space in spaces.items() if (space >= sizes[i]).all()), None)
        if row is None:
            row = len(rows)
            rows.append([])
            spaces[row] = np.array([length, length])
            if len(spaces) > OPEN_ROWS:
                del spaces[min(spaces, key=lambda r: (spaces[r].min(), r))]
        rows[row].append(i)
        spaces[row] = spaces[row] - sizes[i]
    sides = {
        "input_": [e.prompt for e in examples],
        "": [[start_id, *e.completion] for e in examples],
    }
    arrays: dict[str, np.ndarray] = {}
    for side, documents in sides.items():
        tokens, positions, segments = lay_out(documents, rows, length=length)
        arrays |= {
            f"{side}tokens": tokens,
            f"{side}positions": positions,
            f"{side}segment_ids": segments,
        }
    return {**arrays, "mask": arrays["positions"] > 0}
