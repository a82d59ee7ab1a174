"""Records: what is read is what was written, and a mistake is told by file, line and field."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aya_jax.data import atlas
from aya_jax.data.languages import LANGUAGES
from aya_jax.data.records import prompt_messages, read_records, write_records
from aya_jax.errors import AyaError

GOOD = b'{"prompt": "Hallo", "language": "de"}'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"prompt": "Hallo"', "not JSON (Expecting"),
        (b"{'prompt': 'Hallo'}", "not JSON (Expecting property name"),
        (b'{"prompt": ' + b"[" * 200_000, "not JSON"),
        (b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'["Hallo"]', "a record must be a JSON object, found list"),
        (b'"Hallo"', "a record must be a JSON object, found str"),
        (b"null", "a record must be a JSON object, found NoneType"),
        ('{"prompt": "Größe"}'.encode("latin-1"), "not UTF-8 at byte 14; save the file as UTF-8"),
        ('{"prompt": "Hallo"}'.encode("utf-16"), "not UTF-8 at byte 0; save the file as UTF-8"),
        (b'{"promt": "Hallo"}', "field 'prompt' is missing; it has ['promt']"),
        (b'{"prompt": ["Hallo"]}', "field 'prompt' must be a string"),
        (b'{"prompt": null}', "field 'prompt' must be a string"),
        (b'{"prompt": "a", "completion": 3}', "field 'completion' must be a string"),
        (b'{"prompt": "a", "language": "ger"}', "unknown language 'ger'"),
        (b'{"prompt": "a", "language": "deutsch"}', "unknown language 'deutsch'"),
        (b'{"prompt": "a", "language": ["de"]}', "unknown language ['de']"),
        (b'{"prompt": "a\\ud83d"}', "field 'prompt' has half of a surrogate pair"),
        (b'{"messages": []}', "field 'messages' has no turn with role 'user'"),
        (b'{"messages": ["Hallo"]}', "field 'messages' must be a list of"),
        (b'{"messages": [{"role": "tool", "content": "a"}]}', "system, user, assistant"),
    ],
)
def test_a_bad_line_is_told_by_file_line_and_remedy(tmp_path, line, told):
    place = tmp_path / "mine.jsonl"
    place.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n")
    with pytest.raises(AyaError) as error:
        read_records(place)
    assert str(error.value).startswith(f"{place}:3: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\t\n"])
def test_an_empty_file_is_told(tmp_path, content):
    place = tmp_path / "mine.jsonl"
    place.write_bytes(content)
    with pytest.raises(AyaError, match="is empty; at least one record is needed") as error:
        read_records(place)
    assert str(place) in str(error.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(AyaError, match="no such file; check the path"):
        read_records(tmp_path / "nowhere.jsonl")
    with pytest.raises(AyaError, match="cannot be read"):
        read_records(tmp_path)


def test_a_damaged_archive_is_told_wherever_the_damage_is(tmp_path):
    place = tmp_path / "mine.jsonl.gz"
    write_records(place, [{"prompt": f"number {i} of many"} for i in range(50)])
    whole = place.read_bytes()
    assert len(read_records(place)) == 50
    refused = 0
    for damaged in (
        whole[: len(whole) // 2],
        b"plain text",
        *(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :] for i in range(10, len(whole))),
    ):
        place.write_bytes(damaged)
        with pytest.raises(AyaError) as error:
            read_records(place)
        refused += "cannot be read" in str(error.value)
        assert str(error.value).startswith(str(place))
    assert refused > len(whole) // 2


def test_a_missing_field_that_a_stage_needs_is_told(tmp_path):
    place = write_records(tmp_path / "mine.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(AyaError, match=r"mine.jsonl:1: field 'chosen' is missing"):
        read_records(place, required=("prompt", "chosen"))
    assert read_records(place, required=("prompt", "completion"))


def test_unknown_fields_come_back_untouched(tmp_path):
    record = {
        "prompt": "a",
        "meta": {"scores": [1, 2.5, None, True], "z": {"é": "\\u00e9"}},
        "mine": 1e300,
        "_": [],
    }
    place = write_records(tmp_path / "mine.jsonl", [record])
    assert read_records(place) == [record]
    assert list(read_records(place)[0]) == list(record)


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.gz"])
def test_all_languages_come_back(tmp_path, name):
    records = atlas.build(split="train", entities=4, per_language=6)
    assert {record["language"] for record in records} == set(LANGUAGES)
    place = write_records(tmp_path / name, records)
    assert read_records(place) == records
    data = place.read_bytes()
    lines = (gzip.decompress(data) if name.endswith("gz") else data).decode("utf-8").split("\n")
    # People read these files: letters are letters, not escapes.
    assert len(lines) == len(records) + 1
    for record, line in zip(records, lines, strict=False):
        assert json.dumps(record["prompt"], ensure_ascii=False) in line
    write_records(tmp_path / f"again{name}", records)
    assert (tmp_path / f"again{name}").read_bytes() == data


def test_only_a_newline_ends_a_record(tmp_path):
    # What str.splitlines and some editors take for the end of a line.
    text = "a\u2028b\u2029c\x0bd\x0ce\x1cf\x1eg\x85h\ri\r\nj\nk"
    place = write_records(tmp_path / "mine.jsonl", [{"prompt": text}, {"prompt": "next"}])
    assert [record["prompt"] for record in read_records(place)] == [text, "next"]
    raw = '{"prompt": "a\u2028b"}\r\n{"prompt": "c\u0085d"}\r\n'
    place.write_bytes(raw.encode())
    assert [record["prompt"] for record in read_records(place)] == ["a\u2028b", "c\u0085d"]


@given(prompt=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tmp_path_factory, prompt):
    place = tmp_path_factory.getbasetemp() / "any.jsonl"
    write_records(place, [{"prompt": prompt}])
    assert read_records(place) == [{"prompt": prompt}]


def test_escaped_letters_are_letters(tmp_path):
    place = tmp_path / "mine.jsonl"
    place.write_text(json.dumps({"prompt": "Größe 😀"}, ensure_ascii=True) + "\n")
    assert "\\ud83d\\ude00" in place.read_text()
    assert read_records(place)[0]["prompt"] == "Größe 😀"


def test_messages_give_prompt_and_completion(tmp_path):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    place = write_records(
        tmp_path / "mine.jsonl",
        [{"messages": messages}, {"messages": messages[:4]}, {"prompt": "plain"}],
    )
    closed, open_, plain = read_records(place)
    assert (closed["prompt"], closed["completion"]) == ("three", "four")
    assert open_["prompt"] == "three" and "completion" not in open_
    assert prompt_messages(closed) == prompt_messages(open_) == messages[:4]
    assert prompt_messages(plain) == [{"role": "user", "content": "plain"}]


def test_writing_that_fails_leaves_the_old_records(tmp_path):
    place = write_records(tmp_path / "mine.jsonl", [{"prompt": "old"}])

    def broken():
        yield {"prompt": "new"}
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        write_records(place, broken())
    assert read_records(place) == [{"prompt": "old"}]
    assert list(tmp_path.iterdir()) == [place]
