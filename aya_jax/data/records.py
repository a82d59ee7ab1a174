"""Records: UTF-8 JSON Lines, one object a line, with the field names people know from TRL."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aya_jax.data.files import atomic_write
from aya_jax.data.languages import check_language
from aya_jax.errors import AyaError

Record = dict[str, Any]

ROLES = ("system", "user", "assistant")


def read_records(path: str | Path, required: Sequence[str] = ("prompt",)) -> list[Record]:
    """Read a `.jsonl` or `.jsonl.gz` file, every line checked.

    `prompt` may be given as `messages` (a list of `{"role", "content"}`) instead. Unknown fields
    are carried through untouched; a `language`, where given, must be one that we know.

    Raises:
      AyaError: the file is missing, empty or not UTF-8, a line is not a JSON object, lacks a
        required field, or has one of a wrong type; the message names file, line and field.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise AyaError(f"{path}: no such file; check the path") from None
    except (OSError, EOFError, zlib.error) as error:
        raise AyaError(f"{path}: cannot be read ({error}); check the file") from None
    records = []
    for number, line in enumerate(io.BytesIO(data), start=1):
        if line.strip():
            records.append(_parse(line, f"{path}:{number}", required))
    if not records:
        raise AyaError(f"{path}: is empty; at least one record is needed")
    return records


def _parse(line: bytes, where: str, required: Sequence[str]) -> Record:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise AyaError(
            f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise AyaError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise AyaError(f"{where}: not JSON that can be read ({error})") from None
    if not isinstance(record, dict):
        raise AyaError(f"{where}: a record must be a JSON object, found {type(record).__name__}")
    # JSON may escape what no UTF-8 file can hold, and no tokenizer take.
    if b"\\u" in line:
        for field, value in record.items():
            try:
                json.dumps(value, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                raise AyaError(
                    f"{where}: field '{field}' has half of a surrogate pair; write both or none"
                ) from None
    return check_record(record, where, required)


def check_record(record: Record, where: str, required: Sequence[str] = ("prompt",)) -> Record:
    """Return the record, with `prompt` and `completion` filled in from its `messages`.

    Args:
      record: changed in place.
      where: heads the message of an error, such as a file and line.
      required: the fields that it must have.

    Raises:
      AyaError: a required field is missing, one has a wrong type, or the language is unknown.
    """
    if "messages" in record:
        _read_messages(record, where)
    for field in required:
        if field not in record:
            raise AyaError(f"{where}: field '{field}' is missing; it has {sorted(record)}")
    for field in ("prompt", "completion", "chosen", "rejected"):
        if field in record and not isinstance(record[field], str):
            raise AyaError(f"{where}: field '{field}' must be a string")
    if "language" in record:
        check_language(record["language"], where)
    return record


def _read_messages(record: Record, where: str) -> None:
    """Fill `prompt` (the last user turn) and `completion` (a closing assistant turn) in place."""
    messages = record["messages"]
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and m.get("role") in ROLES
        for m in messages
    ):
        raise AyaError(
            f"{where}: field 'messages' must be a list of {{'role', 'content'}} "
            f"with role one of {', '.join(ROLES)}"
        )
    users = [m["content"] for m in messages if m["role"] == "user"]
    if not users:
        raise AyaError(f"{where}: field 'messages' has no turn with role 'user'")
    record.setdefault("prompt", users[-1])
    if messages[-1]["role"] == "assistant":
        record.setdefault("completion", messages[-1]["content"])


def prompt_messages(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the turns that a completion of this record answers: all but a closing answer."""
    messages = record.get("messages")
    if not messages:
        return [{"role": "user", "content": record["prompt"]}]
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def languages_of(records: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the language codes in records, sorted; the number of the k-th, from 0, is k + 1."""
    return tuple(sorted({record["language"] for record in records if "language" in record}))


def name_of(record: Mapping[str, Any]) -> str:
    """Return what an error message calls a record: by its `id`, or the beginning of its prompt."""
    return f"record {record.get('id', record['prompt'][:40])!r}"


def write_records(path: str | Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write records to `path` as one whole file: under another name first, then renamed.

    A name that ends in `.gz` is compressed, the same records always to the same bytes.

    Raises:
      AyaError: the disk is full, or the folder is missing or not writable.
    """
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    data = lines.encode("utf-8")
    path = Path(path)
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    atomic_write(path, data)
    return path
