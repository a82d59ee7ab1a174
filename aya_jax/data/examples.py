"""From records to token arrays: packed rows for SFT, padded pairs for DPO and reward models."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from aya_jax.data.records import Record, languages_of, name_of, prompt_messages
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError

# Tokens that are laid out in memory at once where rows are made for a disk.
TOKENS_AT_ONCE = 1 << 22


class Rows(NamedTuple):
    """Token rows, all [R, T]: int32 but for the bool mask.

    `segment_ids` is 0 on padding; `mask` is True on the tokens that a loss may count, those of
    completions; `languages` tells each token's language by its number, 0 for none.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    mask: np.ndarray
    languages: np.ndarray


class Example(NamedTuple):
    """One prompt with one completion, tokenised.

    `earlier` has the places, [start, stop) each, of answers in the prompt that are learnt as well;
    `language` is a number (see `records.languages_of`), 0 for none.
    """

    prompt: list[int]
    completion: list[int]
    earlier: Sequence[tuple[int, int]] = ()
    language: int = 0


class Document(NamedTuple):
    """An example as rows hold it: int32 ids [N], bool mask [N], and the number of its language."""

    ids: np.ndarray
    mask: np.ndarray
    language: int


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


def tokenize_all(
    records: Sequence[Record], tokenizer: Tokenizer, *, field: str, max_length: int
) -> Iterator[Example]:
    """Tokenise records one by one, each with the number of its language among `languages_of` them.

    Arguments and errors as for `tokenize`.
    """
    numbers = {code: n for n, code in enumerate(languages_of(records), start=1)}
    for record in records:
        example = tokenize(record, tokenizer, field=field, max_length=max_length)
        yield example._replace(language=numbers.get(record.get("language", ""), 0))


def text_examples(lines: Iterable[str], tokenizer: Tokenizer, *, length: int) -> Iterator[Example]:
    """Tokenise plain text, one document a line, every token but the first learnt.

    A line begins with the begin token, if the tokenizer has one, and is closed by the end token; one
    longer than `length` tokens is cut.
    """
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for line in lines:
        ids = [*begin, *tokenizer.encode_completion(line)][:length]
        yield Example(ids[:1], ids[1:])


def pack(examples: Iterable[Example], *, length: int) -> Rows:
    """Pack examples into rows of `length` tokens; see `packed`, also for its errors."""
    return Rows(*map(np.concatenate, zip(*packed(examples, length=length), strict=True)))


def packed(examples: Iterable[Example], *, length: int) -> Iterator[Rows]:
    """Pack examples into rows of `length` tokens by best fit in decreasing order; a few rows a time.

    A document is never split, keeps its own positions from 0 and its own segment id in the row, so
    that attention cannot cross from one document to the next. Order is a function of the examples
    alone.

    Raises:
      AyaError: there is no example, or one is longer than a row.
    """
    documents = [document_of(example) for example in examples]
    rows = best_fit([len(document.ids) for document in documents], length)
    at_once = max(1, TOKENS_AT_ONCE // length)
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        members = [documents[i] for row in some for i in row]
        layout = Layout([len(m.ids) for m in members], [len(row) for row in some], length)
        yield Rows(
            layout.fill(np.concatenate([m.ids for m in members])),
            layout.fill(layout.positions),
            layout.fill(layout.segments),
            layout.fill(np.concatenate([m.mask for m in members])),
            layout.fill(np.repeat([m.language for m in members], layout.sizes)),
        )


def document_of(example: Example) -> Document:
    """Return an example's ids, what of them is learnt, and its language."""
    ids = np.array([*example.prompt, *example.completion], np.int32)
    mask = np.arange(len(ids)) >= len(example.prompt)
    for start, stop in example.earlier:
        mask[start:stop] = True
    return Document(ids, mask, example.language)


def best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Return rows of document numbers: the longest first, each to the row that it fills best.

    At most 11/9 of the fewest rows that there could be, and a few more (best fit decreasing: Johnson
    et al. 1974, SIAM Journal on Computing 3, 299-325).

    Args:
      sizes: of the documents, in tokens.
      length: of a row.

    Raises:
      AyaError: there is no document, or one is longer than a row.
    """
    if not sizes:
        raise AyaError("there is nothing to train on: no example was given")
    if max(sizes) > length:
        raise AyaError(
            f"an example of {max(sizes)} tokens does not fit rows of {length}; raise max_length"
        )
    rows: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(length + 1)]
    # Bit s is set where some row has s tokens of space, so that the least that will do is one look.
    spaces = 0
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        enough = spaces >> sizes[i]
        if enough:
            space = sizes[i] + (enough & -enough).bit_length() - 1
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
            rows[row].append(i)
        else:
            row, space = len(rows), length
            rows.append([i])
        left = space - sizes[i]
        by_space[left].append(row)
        if left:
            spaces |= 1 << left
    return rows


class Layout:
    """Where documents lie that fill rows side by side, from the left.

    Attributes:
      sizes: int [N], of the documents in tokens.
      positions: int32, of every token in its document.
      segments: int32, the number of every token's document in its row, from 1.
    """

    def __init__(self, sizes: Sequence[int], counts: Sequence[int], length: int) -> None:
        """Lay documents out.

        Args:
          sizes: of the documents, row by row.
          counts: how many of them each row has, of which it has room for all.
          length: of a row.
        """
        self.sizes = np.asarray(sizes)
        self._shape = (len(counts), length)
        before = np.cumsum(self.sizes) - self.sizes
        first = np.cumsum(counts) - counts
        row = np.repeat(np.arange(len(counts)), counts)
        places = row * length + before - before[first][row]
        numbers = np.arange(len(self.sizes)) - first[row] + 1
        inner = np.arange(self.sizes.sum()) - np.repeat(before, self.sizes)
        self.positions = inner.astype(np.int32)
        self.segments = np.repeat(numbers, self.sizes).astype(np.int32)
        self._places = np.repeat(places, self.sizes) + inner

    def fill(self, values: np.ndarray) -> np.ndarray:
        """Return rows [R, length] of one value a token, bool or int32, with 0 where there is none."""
        out = np.zeros(self._shape, bool if values.dtype == bool else np.int32)
        out.reshape(-1)[self._places] = values
        return out


def pad(examples: Sequence[Example], *, length: int) -> Rows:
    """Give each example a row of its own, padded on the right to `length` tokens.

    No example may be longer.
    """
    return _pad([document_of(example) for example in examples], length)


def padded_pairs(
    chosen: Iterable[Example], rejected: Iterable[Example], *, multiple: int, max_length: int
) -> Iterator[dict[str, np.ndarray]]:
    """Pad pairs of examples to one length, the least multiple of `multiple` that holds them all.

    Args:
      chosen, rejected: the two sides of every pair, at least one.
      multiple, max_length: in tokens; see `pad_length`.

    Returns:
      A few pairs a time, `chosen_*` and `rejected_*` of the fields of `Rows` [P, T], but for int32
      `languages` [P].
    """
    pairs = [tuple(map(document_of, pair)) for pair in zip(chosen, rejected, strict=True)]
    sizes = (len(side.ids) for pair in pairs for side in pair)
    length = pad_length(sizes, multiple=multiple, max_length=max_length)
    at_once = max(1, TOKENS_AT_ONCE // (2 * length))
    for start in range(0, len(pairs), at_once):
        some = pairs[start : start + at_once]
        arrays = {"languages": np.array([pair[0].language for pair in some], np.int32)}
        for side, documents in zip(("chosen", "rejected"), zip(*some, strict=True), strict=True):
            rows = _pad(documents, length)._asdict()
            del rows["languages"]
            arrays |= {f"{side}_{name}": array for name, array in rows.items()}
        yield arrays


def _pad(documents: Sequence[Document], length: int) -> Rows:
    shape = (len(documents), length)
    tokens, segments, languages = (np.zeros(shape, np.int32) for _ in range(3))
    mask = np.zeros(shape, bool)
    for r, document in enumerate(documents):
        size = len(document.ids)
        tokens[r, :size] = document.ids
        segments[r, :size] = 1
        mask[r, :size] = document.mask
        languages[r, :size] = document.language
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape).copy()
    return Rows(tokens, positions, segments, mask, languages)


def pad_length(sizes: Iterable[int], *, multiple: int, max_length: int) -> int:
    """Return the least multiple of `multiple` that is not below any size, at most `max_length`.

    All in tokens; there must be a size.
    """
    return min(-(-max(sizes) // multiple) * multiple, max_length)
