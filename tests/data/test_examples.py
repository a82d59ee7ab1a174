"""From records to rows: the mask, packing and padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aya_jax.data.examples import (
    Example,
    Rows,
    best_fit,
    pack,
    packed,
    pad,
    pad_length,
    padded_pairs,
    text_examples,
    tokenize,
    tokenize_all,
)
from aya_jax.data.records import languages_of
from aya_jax.errors import AyaError

LENGTH = 12
DTYPES = [np.int32, np.int32, np.int32, bool, np.int32]
IDS = st.integers(1, 99)
HALF = st.lists(IDS, min_size=1, max_size=LENGTH // 2)


def spans(size):
    """Up to two places in a prompt that are learnt as well."""
    edges = st.lists(st.integers(0, size), max_size=5, unique=True).map(sorted)
    return edges.map(lambda places: list(zip(places[::2], places[1::2], strict=False)))


EXAMPLES = st.lists(
    HALF.flatmap(
        lambda prompt: st.builds(
            Example, st.just(prompt), HALF, spans(len(prompt)), st.integers(0, 3)
        )
    ),
    min_size=1,
    max_size=20,
)


def documents(rows):
    """Read (tokens, mask, positions) of each document back from the rows' segment ids alone."""
    found = []
    for tokens, positions, segments, mask, languages in zip(*rows, strict=True):
        last = int(segments.max())
        # Segments lie side by side from the left, numbered 1, 2, ..., and then padding.
        used = int((segments > 0).sum())
        assert (segments[:used] > 0).all()
        assert (np.diff(segments[:used]) >= 0).all()
        assert set(segments[:used]) == set(range(1, last + 1))
        assert not (tokens[used:].any() or mask[used:].any() or languages[used:].any())
        for segment in range(1, last + 1):
            here = segments == segment
            (language,) = set(languages[here].tolist())
            found.append(
                (tokens[here].tolist(), mask[here].tolist(), positions[here].tolist(), language)
            )
    return found


def expected(examples):
    return [
        (
            e.prompt + e.completion,
            [any(a <= i < b for a, b in e.earlier) for i in range(len(e.prompt))]
            + [True] * len(e.completion),
            list(range(len(e.prompt + e.completion))),
            e.language,
        )
        for e in examples
    ]


@given(examples=EXAMPLES)
def test_packing_loses_nothing_splits_nothing_and_mixes_nothing(examples):
    rows = pack(examples, length=LENGTH)
    assert all(array.shape == rows.tokens.shape for array in rows)
    assert rows.tokens.shape[1] == LENGTH
    assert [array.dtype for array in rows] == DTYPES
    assert sorted(documents(rows)) == sorted(expected(examples))


@given(examples=EXAMPLES)
def test_packing_leaves_no_two_rows_that_would_fit_in_one(examples):
    used = sorted((pack(examples, length=LENGTH).segment_ids > 0).sum(axis=1).tolist())
    assert len(used) == 1 or used[0] + used[1] > LENGTH
    assert sum(used) == sum(len(e.prompt) + len(e.completion) for e in examples)


@given(examples=EXAMPLES, spare=st.integers(0, 5))
def test_padding_gives_each_example_its_own_row_in_order(examples, spare):
    length = max(len(e.prompt) + len(e.completion) for e in examples) + spare
    rows = pad(examples, length=length)
    assert [array.dtype for array in rows] == DTYPES
    assert rows.tokens.shape == (len(examples), length)
    assert documents(rows) == expected(examples)


@given(sizes=st.lists(st.integers(1, 60), min_size=1), multiple=st.integers(1, 9))
def test_the_length_of_padding_is_the_least_multiple_that_holds_all(sizes, multiple):
    length = pad_length(sizes, multiple=multiple, max_length=1000)
    assert length % multiple == 0 and max(sizes) <= length < max(sizes) + multiple
    assert pad_length(iter(sizes), multiple=multiple, max_length=max(sizes)) == max(sizes)


@given(examples=EXAMPLES, multiple=st.integers(1, 9))
def test_pairs_are_the_padded_rows_of_both_sides(examples, multiple):
    others = [e._replace(completion=e.completion[::-1] * 2) for e in examples]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aya_jax.data.examples.TOKENS_AT_ONCE", 150)
        parts = list(padded_pairs(iter(examples), others, multiple=multiple, max_length=18))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    sizes = (len(e.prompt) + len(e.completion) for e in [*examples, *others])
    length = pad_length(sizes, multiple=multiple, max_length=18)
    expected = {"languages": [e.language for e in examples]}
    for side, members in (("chosen", examples), ("rejected", others)):
        rows = pad(members, length=length)._asdict()
        expected |= {f"{side}_{name}": rows[name] for name in Rows._fields if name != "languages"}
    assert arrays.keys() == expected.keys() and arrays["languages"].dtype == np.int32
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])


def test_rows_are_filled_to_the_brim():
    sizes = (12, 7, 5, 6, 6, 4, 4, 4, 3, 9)
    rows = pack([Example([1], [2] * (size - 1)) for size in sizes], length=12)
    assert len(rows.tokens) == 5 and (rows.segment_ids > 0).all()


@given(sizes=st.lists(st.integers(1, LENGTH), min_size=1, max_size=40))
def test_each_document_goes_where_the_least_space_is_left(sizes):
    rows = best_fit(sizes, LENGTH)
    space = {}
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next(r for r, members in enumerate(rows) if i in members)
        enough = [s for s in space.values() if s >= sizes[i]]
        assert space.get(row, LENGTH) == min(enough, default=LENGTH)
        assert enough or row not in space
        space[row] = space.get(row, LENGTH) - sizes[i]
    assert sorted(i for members in rows for i in members) == list(range(len(sizes)))


def test_rows_made_a_few_at_a_time_are_the_same(monkeypatch):
    examples = [Example([i], [i] * (1 + i % 5), language=i % 3) for i in range(1, 60)]
    whole = pack(examples, length=LENGTH)
    monkeypatch.setattr("aya_jax.data.examples.TOKENS_AT_ONCE", 4 * LENGTH)
    parts = list(packed((e for e in examples), length=LENGTH))
    assert len(parts) > 2 and {len(part.tokens) for part in parts[:-1]} == {4}
    for name, array in whole._asdict().items():
        np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), array)


def test_packing_follows_from_the_examples_alone():
    examples = [Example([i], [i] * (1 + i % 5)) for i in range(1, 30)]
    first, second = pack(examples, length=LENGTH), pack(list(examples), length=LENGTH)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_cannot_be_packed_is_told():
    with pytest.raises(AyaError, match="no example was given"):
        pack([], length=8)
    with pytest.raises(AyaError, match="an example of 9 tokens does not fit rows of 8"):
        pack([Example([1], [2] * 8)], length=8)
    assert pack([Example([1], [2] * 7)], length=8).mask.sum() == 7


def test_the_mask_covers_the_completion_and_the_end_of_turn(tokenizer):
    record = {"prompt": "Wie heißt der Tag?", "completion": " Sonntag ☀\n", "language": "de"}
    example = tokenize(record, tokenizer, field="completion", max_length=200)
    for rows in (pack([example, example], length=200), pad([example], length=200)):
        for segment in range(1, int(rows.segment_ids.max()) + 1):
            here = rows.segment_ids[0] == segment
            learnt = rows.tokens[0][here & rows.mask[0]]
            given_ = rows.tokens[0][here & ~rows.mask[0]]
            assert tokenizer.decode(learnt) == "Sonntag ☀" and learnt[-1] == tokenizer.eos_id
            assert (learnt == tokenizer.eos_id).sum() == 1
            turn = {"role": "user", "content": record["prompt"]}
            assert given_.tolist() == tokenizer.encode_chat([turn])


def test_a_record_that_is_too_long_is_told_by_its_name(tokenizer):
    record = {"id": "the-long-one", "prompt": "☃" * 20, "chosen": "☂" * 10}
    # 3 bytes a letter; a beginning, two turn openings, an end of turn each.
    size = (6 + 60, 30 + 1)
    example = tokenize(record, tokenizer, field="chosen", max_length=97)
    assert (len(example.prompt), len(example.completion)) == size
    with pytest.raises(AyaError) as error:
        tokenize(record, tokenizer, field="chosen", max_length=96)
    assert "record 'the-long-one': prompt (66 tokens) and chosen (31)" in str(error.value)
    assert "context of 96" in str(error.value)
    nameless = {"prompt": "☃" * 500, "chosen": "x"}
    with pytest.raises(AyaError, match=f"record '{'☃' * 40}':"):
        tokenize(nameless, tokenizer, field="chosen", max_length=96)


def test_a_conversation_is_the_prompt_of_its_last_answer(tokenizer):
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    record = {"messages": messages, "prompt": "three", "completion": "four"}
    example = tokenize(record, tokenizer, field="completion", max_length=100)
    assert example.prompt == tokenizer.encode_chat(messages)
    assert example.completion == [*tokenizer.encode("four"), tokenizer.eos_id]
    # The answer in the middle is learnt with the last one, but does not count in a preference.
    rows = pad([example], length=100)
    learnt = rows.tokens[0][rows.mask[0]].tolist()
    assert learnt == [*tokenizer.encode("two"), tokenizer.eos_id, *example.completion]
    pair = {"messages": messages, "prompt": "three", "chosen": "four"}
    assert tokenize(pair, tokenizer, field="chosen", max_length=100) == example._replace(earlier=())


def test_an_example_knows_the_number_of_its_language(tokenizer):
    codes = ("uk", None, "de", "uk", "zh-Hant")
    rows = [{"prompt": "?", "completion": "!", **({"language": c} if c else {})} for c in codes]
    assert languages_of(rows) == ("de", "uk", "zh-Hant")
    examples = list(tokenize_all(rows, tokenizer, field="completion", max_length=50))
    assert [e.language for e in examples] == [2, 0, 1, 2, 3]
    alone = tokenize(rows[0], tokenizer, field="completion", max_length=50)
    assert examples[0] == alone._replace(language=2)


def test_plain_text_is_learnt_but_for_its_first_token(tokenizer):
    lines = ["Montag", "☃" * 100, "Κυριακή"]
    rows = pack(text_examples(lines, tokenizer, length=40), length=40)
    found = documents(rows)
    assert sorted(ids for ids, *_ in found) == sorted(
        [tokenizer.bos_id, *tokenizer.encode(line), tokenizer.eos_id][:40] for line in lines
    )
    assert all(mask == [False] + [True] * (len(mask) - 1) for _, mask, *_ in found)
