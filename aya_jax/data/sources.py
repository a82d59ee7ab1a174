"""Where a stage's records come from: the built-in atlas, a JSONL file, or a TFDS data set."""

from collections.abc import Sequence
from typing import Any

import gin

from aya_jax.data import atlas
from aya_jax.data.files import fingerprint_file
from aya_jax.data.records import Record, check_record, read_records
from aya_jax.errors import AyaError

TFDS_PREFIX = "tfds:"


@gin.configurable(module="source")
def records(
    *,
    source: str = "atlas",
    split: str = "train",
    languages: Sequence[str] | None = None,
    limit_per_language: int | None = None,
    data_dir: str | None = None,
) -> list[Record]:
    """Return the records of a source.

    Args:
      source: `atlas` (its settings are `atlas.build.*`), the path of a JSONL file, or `tfds:NAME`
        (read through `tfds.data_source`, without TensorFlow).
      split: of the atlas or the TFDS data set.
      languages: keep only these; of the atlas, ask only in these.
      limit_per_language: keep the first so many of each language.
      data_dir: where TFDS data sets lie; the environment's TFDS_DATA_DIR if absent.

    Raises:
      AyaError: the source cannot be read, or nothing is left.
    """
    if source == "atlas":
        rows = atlas.build(split=split, **({"languages": languages} if languages else {}))
    elif source.startswith(TFDS_PREFIX):
        rows = _from_tfds(source[len(TFDS_PREFIX) :], split, data_dir)
    else:
        rows = read_records(source)
    counts: dict[str, int] = {}
    kept = []
    for row in rows:
        code = row.get("language", "und")
        if languages is not None and code not in languages:
            continue
        counts[code] = counts.get(code, 0) + 1
        if limit_per_language is None or counts[code] <= limit_per_language:
            kept.append(row)
    if not kept:
        raise AyaError(f"{source}: no record is left in the languages {list(languages or [])}")
    return kept


def _from_tfds(name: str, split: str, data_dir: str | None) -> list[Record]:
    import tensorflow_datasets as tfds

    try:
        data = tfds.data_source(name, split=split, data_dir=data_dir)
    # tfds raises what its layers raise; every one means that the data set cannot be read here.
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise AyaError(f"tfds:{name}: cannot be read ({reason}); prepare it first") from None
    return [check_record(_plain(row), f"tfds:{name}: record {i}") for i, row in enumerate(data)]


def _plain(row: dict[str, Any]) -> Record:
    out: Record = {}
    for field, value in row.items():
        plain = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(plain, bytes):
            plain = plain.decode("utf-8")
        elif isinstance(plain, list):
            plain = [v.decode("utf-8") if isinstance(v, bytes) else v for v in plain]
        out[field] = plain
    return out


def source_fingerprint(source: str, required: Sequence[str] = ("prompt",)) -> str:
    """Return what tells one state of a source from another: the hash of a file, else its name.

    So a TFDS set that changes under its name is not noticed. A file is read through, so that a bad
    line in it is told before the work that comes before its use.

    Args:
      source: see `records`.
      required: fields that each record of a file must have.

    Raises:
      AyaError: the file cannot be read, or a line of it is no record.
    """
    if source == "atlas" or source.startswith(TFDS_PREFIX):
        return source
    read_records(source, required)
    return fingerprint_file(source)


@gin.configurable(module="source")
def text(*, source: str = "atlas", languages: Sequence[str] | None = None) -> list[str]:
    """Return plain text, for a tokenizer and a base model.

    Args:
      source: `atlas` (its settings are `atlas.text.*`) or a JSONL file, whose prompts and
        completions are taken.
      languages: keep only these.

    Raises:
      AyaError: the file cannot be read, or nothing is left.
    """
    if source == "atlas":
        return atlas.text(**({"languages": languages} if languages else {}))
    lines: list[str] = []
    for row in read_records(source, required=()):
        if languages is None or row.get("language") in languages:
            lines.extend(row[f] for f in ("prompt", "completion", "text") if row.get(f))
    if not lines:
        raise AyaError(f"{source}: has no text in the languages {list(languages or [])}")
    return lines
