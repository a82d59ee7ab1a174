"""Rows for an encoder-decoder: whole documents, the same on both sides."""

import numpy as np
import pytest

from aya_jax.data.examples import Example
from aya_jax.data.seq2seq import pack_seq2seq, packed_seq2seq
from aya_jax.errors import AyaError

START = 7


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 20, (200, 2))
    return [Example(*(rng.integers(10, 99, n).tolist() for n in pair)) for pair in sizes]


def documents(arrays):
    """Return every (prompt, completion with its first token) in the rows, as they lie there."""
    found = []
    for row in range(len(arrays["tokens"])):
        for segment in range(1, arrays["segment_ids"][row].max() + 1):
            sides = []
            for side in ("input_", ""):
                here = np.flatnonzero(arrays[f"{side}segment_ids"][row] == segment)
                assert (np.diff(here) == 1).all()
                positions = arrays[f"{side}positions"][row][here]
                assert positions.tolist() == list(range(len(here)))
                sides.append(arrays[f"{side}tokens"][row][here].tolist())
            found.append(tuple(map(tuple, sides)))
    return found


def test_every_document_is_whole_and_there_once(examples):
    arrays = pack_seq2seq(examples, length=32, start_id=START)
    expected = [(tuple(e.prompt), (START, *e.completion)) for e in examples]
    assert sorted(documents(arrays)) == sorted(expected)
    assert {array.shape[1] for array in arrays.values()} == {32}
    # What is learnt is what was completed, and no more.
    learnt = sum(len(e.completion) for e in examples)
    assert arrays["mask"].sum() == learnt
    assert (arrays["segment_ids"][arrays["mask"]] > 0).all()
    assert not arrays["mask"][arrays["positions"] == 0].any()


def test_packing_is_close_and_does_not_change(examples):
    arrays = pack_seq2seq(examples, length=32, start_id=START)
    tokens = max(sum(len(e.prompt) for e in examples), sum(1 + len(e.completion) for e in examples))
    assert len(arrays["tokens"]) < 1.15 * tokens / 32
    again = pack_seq2seq(examples, length=32, start_id=START)
    assert all((arrays[name] == again[name]).all() for name in arrays)


def test_many_rows_are_packed_as_closely_and_in_parts(examples, monkeypatch):
    many = [e._replace(language=i % 4) for i, e in enumerate(examples * 6)]
    monkeypatch.setattr("aya_jax.data.seq2seq.BLOCK", 300)
    whole = pack_seq2seq(many, length=32, start_id=START)
    tokens = max(sum(len(e.prompt) for e in many), sum(1 + len(e.completion) for e in many))
    assert len(whole["tokens"]) < 1.15 * tokens / 32
    monkeypatch.setattr("aya_jax.data.seq2seq.TOKENS_AT_ONCE", 32 * 50)
    parts = list(packed_seq2seq(iter(many), length=32, start_id=START))
    assert len(parts) > 2
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
    # A completion's language is that of its example.
    found = [
        (whole["tokens"][row][here].tolist(), sorted({*whole["languages"][row][here].tolist()}))
        for row in range(len(whole["tokens"]))
        for segment in range(1, whole["segment_ids"][row].max() + 1)
        for here in [whole["segment_ids"][row] == segment]
    ]
    assert sorted(found) == sorted(([START, *e.completion], [e.language]) for e in many)
    assert not whole["languages"][whole["segment_ids"] == 0].any()


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no example was given"),
        ([Example([1] * 9, [1])], "an example of 9 tokens does not fit rows of 8"),
        ([Example([1], [1] * 8)], "an example of 9 tokens does not fit rows of 8"),
    ],
)
def test_what_does_not_fit(examples, message):
    with pytest.raises(AyaError, match=message):
        pack_seq2seq(examples, length=8, start_id=START)
