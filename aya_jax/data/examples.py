"""From records to token arrays: packed rows for SFT, padded pairs for DPO and reward models."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    """One prompt with one completion, tokenised.

    `earlier` has the places, [start, stop) each, of answers in the prompt that are learnt as well.
    """

    prompt: list[int]
    completion: list[int]
    earlier: Sequence[tuple[int, int]] = ()


def fits(record: Record, completion: str, tokenizer: Tokenizer, max_length: int) -> bool:
    """Whether a record's prompt and a completion are together at most `max_length` tokens long."""
    example = _encode(record, completion, tokenizer)
    return len(example.prompt) + len(example.completion) <= max_length


def tokenize(record: Record, tokenizer: Tokenizer, *, field: str, max_length: int) -> Example:
    """Tokenise a record's prompt through the chat template, and the completion in `field`.

    Where `completion` is learnt of a conversation, the assistant's earlier answers are learnt too. A
    preference tells two answers to the same prompt apart, so there they are not.

    Raises:
      AyaError: there is no such field, prompt and completion together are longer than `max_length`
        tokens, or the chat template does not tell which tokens are the assistant's.
    """
    if field not in record:
        raise AyaError(f"{name_of(record)}: field {field!r} is missing; it has {sorted(record)}")
    example = _encode(record, record[field], tokenizer, earlier=field == "completion")
    prompt, completion = len(example.prompt), len(example.completion)
    if prompt + completion > max_length:
        raise AyaError(
            f"{name_of(record)}: prompt ({prompt} tokens) and {field} ({completion}) exceed "
            f"the context of {max_length}; shorten it or raise max_length"
        )
    return example


def _encode(
    record: Record, completion: str, tokenizer: Tokenizer, *, earlier: bool = False
) -> Example:
    turns = prompt_messages(record)
    try:
        prompt, answer = tokenizer.encode_answer(turns, completion)
        if not earlier:
            return Example(prompt, answer)
        spans = tokenizer.assistant_spans(turns, add_generation_prompt=True)
    except AyaError as error:
        raise AyaError(f"{name_of(record)}: {error}") from None
    return Example(prompt, answer, spans)


def text_rows(lines: Sequence[str], tokenizer: Tokenizer, *, length: int) -> Rows:
    """Pack plain text, one segment a line, every token but the first learnt.

    A line begins with the begin token, if the tokenizer has one, and is closed by the end token; one
    longer than a row of `length` tokens is cut.

    Raises:
      AyaError: there is no line.
    """
    documents = []
    for line in lines:
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        ids = [*begin, *tokenizer.encode_completion(line)][:length]
        documents.append(Example(ids[:1], ids[1:]))
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
    tokens, positions, segments = lay_out(
        [e.prompt + e.completion for e in examples], rows, length=length
    )
    mask = _side_by_side([_learnt(e) for e in examples], rows, length) > 0
    return Rows(tokens, positions, segments, mask)


def lay_out(
    documents: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], *, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return int32 tokens, positions and segment ids [R, T] of documents one after the other.

    Args:
      documents: their ids.
      rows: the numbers of the documents in each row, of which it has room for all.
      length: of the rows.
    """
    segment = {i: n for members in rows for n, i in enumerate(members, start=1)}
    positions = [np.arange(len(ids)) for ids in documents]
    segments = [np.full(len(ids), segment[i]) for i, ids in enumerate(documents)]
    tokens, places, numbers = (
        _side_by_side(parts, rows, length) for parts in (documents, positions, segments)
    )
    return tokens, places, numbers


def _side_by_side(parts: Sequence[Any], rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Return int32 [R, T]: in each row those parts that it names, then zeros."""
    out = np.zeros((len(rows), length), np.int32)
    for row, members in zip(out, rows, strict=True):
        whole = np.concatenate([parts[i] for i in members])
        row[: len(whole)] = whole
    return out


def _learnt(example: Example) -> np.ndarray:
    """Return bool, True on those tokens of an example that are learnt."""
    prompt, completion = len(example.prompt), len(example.completion)
    mask = np.arange(prompt + completion) >= prompt
    for start, stop in example.earlier:
        mask[start:stop] = True
    return mask


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
        mask[r, : len(ids)] = _learnt(example)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy()
    return Rows(tokens, positions, segments, mask)


def pad_length(examples: Sequence[Example], *, multiple: int, max_length: int) -> int:
    """Return the least multiple of `multiple` that holds every example, at most `max_length`.

    All in tokens; there must be an example.
    """
    longest = max(len(e.prompt) + len(e.completion) for e in examples)
    return min(-(-longest // multiple) * multiple, max_length)
