"""From records to token arrays: packed rows for SFT, padded pairs for DPO and reward models."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aya_jax.data.records import Record, name_of, prompt_messages
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError


class Rows(NamedTuple):
    """Token rows, all [R, T]: int32 tokens, positions, segment_ids (0 is padding), bool mask.

    `mask` is True on the tokens that a loss may count: those of completions.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    mask: np.ndarray


class Example(NamedTuple):
    """One prompt with one completion, tokenised."""

    prompt: list[int]
    completion: list[int]


def fits(record: Record, completion: str, tokenizer: Tokenizer, max_length: int) -> bool:
    """Whether a record's prompt and a completion are together at most `max_length` tokens long."""
    prompt = tokenizer.encode_chat(prompt_messages(record))
    return len(prompt) + len(tokenizer.encode_completion(completion)) <= max_length


def tokenize(record: Record, tokenizer: Tokenizer, *, field: str, max_length: int) -> Example:
    """Tokenise a record's prompt through the chat template, and the completion in `field`.

    Raises:
      AyaError: there is no such field, or prompt and completion together are longer than
        `max_length` tokens.
    """
    if field not in record:
        raise AyaError(f"{name_of(record)}: field {field!r} is missing; it has {sorted(record)}")
    prompt = tokenizer.encode_chat(prompt_messages(record))
    completion = tokenizer.encode_completion(record[field])
    length = len(prompt) + len(completion)
    if length > max_length:
        raise AyaError(
            f"{name_of(record)}: prompt ({len(prompt)} tokens) and {field} ({len(completion)}) exceed "
            f"the context of {max_length}; shorten it or raise max_length"
        )
    return Example(prompt, completion)


def text_rows(lines: Sequence[str], tokenizer: Tokenizer, *, length: int) -> Rows:
    """Pack plain text, one segment a line, every token but the first learnt.

    A line begins with the begin token and is closed by the end token; one longer than a row of
    `length` tokens is cut.

    Raises:
      AyaError: there is no line.
    """
    documents = []
    for line in lines:
        ids = tokenizer.encode_completion(line)[: length - 1]
        documents.append(Example([tokenizer.bos_id], ids))
    return pack(documents, length=length)


def pack(examples: Sequence[Example], *, length: int) -> Rows:
    """Pack examples into rows of `length` tokens by best fit in decreasing order.

    A document is never split, keeps its own positions from 0 and its own segment id in the row, so
    that attention cannot cross from one document to the next. Order is a function of the examples
    alone.

    Raises:
      AyaError: there is no example, or one is longer than a row.
    """
    if not examples:
        raise AyaError("there is nothing to train on: no example was given")
    sizes = [len(e.prompt) + len(e.completion) for e in examples]
    order = sorted(range(len(examples)), key=lambda i: (-sizes[i], i))
    if sizes[order[0]] > length:
        raise AyaError(
            f"an example of {sizes[order[0]]} tokens does not fit rows of {length}; raise max_length"
        )
    rows: list[list[int]] = []
    open_by_space: dict[int, list[int]] = {}
    for i in order:
        fit = next((s for s in range(sizes[i], length + 1) if open_by_space.get(s)), None)
        if fit is None:
            rows.append([i])
            row, space = len(rows) - 1, length
        else:
            row, space = open_by_space[fit].pop(), fit
            rows[row].append(i)
        open_by_space.setdefault(space - sizes[i], []).append(row)
    tokens = np.zeros((len(rows), length), np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    mask = np.zeros(tokens.shape, bool)
    for r, members in enumerate(rows):
        start = 0
        for segment, i in enumerate(members, start=1):
            ids = examples[i].prompt + examples[i].completion
            stop = start + len(ids)
            tokens[r, start:stop] = ids
            positions[r, start:stop] = np.arange(len(ids))
            segments[r, start:stop] = segment
            mask[r, start + len(examples[i].prompt) : stop] = True
            start = stop
    return Rows(tokens, positions, segments, mask)


def pad(examples: Sequence[Example], *, length: int) -> Rows:
    """Give each example a row of its own, padded on the right to `length` tokens.

    No example may be longer; see `pad_length`.
    """
    tokens = np.zeros((len(examples), length), np.int32)
    segments = np.zeros_like(tokens)
    mask = np.zeros(tokens.shape, bool)
    for r, example in enumerate(examples):
        ids = example.prompt + example.completion
        tokens[r, : len(ids)] = ids
        segments[r, : len(ids)] = 1
        mask[r, len(example.prompt) : len(ids)] = True
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy()
    return Rows(tokens, positions, segments, mask)


def pad_length(examples: Sequence[Example], *, multiple: int, max_length: int) -> int:
    """Return the least multiple of `multiple` that holds every example, at most `max_length`.

    All in tokens; there must be an example.
    """
    longest = max(len(e.prompt) + len(e.completion) for e in examples)
    return min(-(-longest // multiple) * multiple, max_length)
