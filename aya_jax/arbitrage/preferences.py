"""Preference pairs for reward models: a good in-language completion against a poor one.

As "RLHF Can Speak Many Languages" (arXiv 2407.02552) builds them: the poor one is wrong, in another
language, or a translated artefact.
"""

import hashlib
from collections.abc import Mapping, Sequence

import gin

from aya_jax.data.atlas import poor_completions
from aya_jax.data.records import Record

FAULTS = ("wrong", "wrong_language", "translationese", "truncated")


def _draw(*parts: object) -> int:
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def _poor_of_others(
    records: Sequence[Record],
    by_language: Mapping[str | None, Sequence[int]],
    index: int,
    seed: int,
) -> dict[str, str]:
    """Return faulty completions of a record that has no checker: other records' completions."""
    record = records[index]
    code = record.get("language")
    codes = sorted(c or "" for c in by_language if c != code)
    other = codes[_draw(seed, "language", index) % len(codes)] if codes else code
    poor = {}
    for fault, source in (("wrong", code), ("wrong_language", other)):
        pool = by_language.get(source, ())
        text = records[pool[_draw(seed, fault, index) % len(pool)]]["completion"] if pool else None
        if text and text != record["completion"]:
            poor[fault] = text
    words = record["completion"].split()
    if len(words) > 3:
        poor["truncated"] = " ".join(words[: len(words) // 3])
    return poor


@gin.configurable(denylist=["records"])
def preference_pairs(
    records: Sequence[Record], *, faults: Sequence[str] = FAULTS, per_record: int = 2, seed: int = 0
) -> list[Record]:
    """Return pairs with `chosen`, `rejected` and the `fault` of the rejected one.

    A record that already has `chosen` and `rejected` is a pair as it is. Otherwise its completion is
    the chosen one, and the rejected ones are made: by the atlas where the record is from it, and
    else from other records' completions.

    Args:
      records: with `completion`, or with `chosen` and `rejected`.
      faults: which kinds of poor completions to make.
      per_record: at most so many pairs a record, drawn by the seed.
      seed: of all draws.
    """
    pairs = []
    by_language: dict[str | None, list[int]] = {}
    for index, record in enumerate(records):
        if "completion" in record:
            by_language.setdefault(record.get("language"), []).append(index)
    for index, record in enumerate(records):
        if "chosen" in record and "rejected" in record:
            pairs.append(record)
            continue
        if "concept" in record:
            poor = poor_completions(record, seed=seed)
        else:
            poor = _poor_of_others(records, by_language, index, seed)
        usable = sorted(
            (fault for fault in faults if fault in poor),
            key=lambda fault: _draw(seed, fault, record["prompt"]),
        )
        for fault in usable[:per_record]:
            kept = {k: v for k, v in record.items() if k != "completion"}
            pairs.append(
                {**kept, "chosen": record["completion"], "rejected": poor[fault], "fault": fault}
            )
    return pairs
