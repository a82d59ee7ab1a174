"""Preference pairs for reward models: a good in-language completion against a poor one.

As "RLHF Can Speak Many Languages" (arXiv 2407.02552) builds them: the poor one is a weaker model's,
wrong, in another language, or a translated artefact.
"""

from collections.abc import Mapping, Sequence

import gin

from aya_jax.data.atlas import check, poor_completions
from aya_jax.data.files import stable_hash
from aya_jax.data.records import Record, name_of
from aya_jax.errors import AyaError, nearest

FAULTS = ("wrong", "wrong_language", "slip", "translationese", "truncated")


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
    other = codes[stable_hash(seed, "language", index) % len(codes)] if codes else code
    poor = {}
    for fault, source in (("wrong", code), ("wrong_language", other)):
        pool = by_language.get(source, ())
        if pool:
            drawn = records[pool[stable_hash(seed, fault, index) % len(pool)]]
            text = drawn["completion"]
            # Another answer to the same prompt may be as good.
            if text and text != record["completion"] and drawn["prompt"] != record["prompt"]:
                poor[fault] = text
    words = record["completion"].split()
    if len(words) > 3:
        poor["truncated"] = " ".join(words[: len(words) // 3])
    return poor


def _poor(record: Record, text: str | None) -> bool:
    """Whether a model's answer may stand as the poor one: by the checker where there is one."""
    if not text or text == record["completion"]:
        return False
    return "answers" not in record or not check(record, text).correct


def require_lesson(record: Record) -> None:
    """Raise `AyaError` for a record that a reward model can learn nothing from."""
    if "completion" not in record and not {"chosen", "rejected"} <= record.keys():
        raise AyaError(
            f"{name_of(record)}: a reward model learns from 'chosen' and 'rejected', or from a good "
            "'completion'; add one or the other"
        )


@gin.configurable(denylist=["records"])
def preference_pairs(
    records: Sequence[Record], *, faults: Sequence[str] = FAULTS, per_record: int = 2, seed: int = 0
) -> list[Record]:
    """Return pairs with `chosen`, `rejected` and the `fault` of the rejected one.

    A record that already has `chosen` and `rejected` is a pair as it is. Otherwise its completion is
    the chosen one. Rejected are the poor answers among its `candidates` if it has any (fault
    `model`), and completions that are made: by the atlas where the record is from it, and else from
    other records' completions.

    Args:
      records: with `completion`, or with `chosen` and `rejected`.
      faults: which kinds of poor completions to make.
      per_record: make at most so many a record, drawn by the seed.
      seed: of all draws.

    Raises:
      AyaError: a record has neither, or a fault is unknown.
    """
    for fault in faults:
        if fault not in FAULTS:
            hint = nearest(fault, FAULTS)
            raise AyaError(f"preference_pairs.faults: unknown fault {fault!r}{hint}")
    pairs = []
    by_language: dict[str | None, list[int]] = {}
    for index, record in enumerate(records):
        if "completion" in record:
            by_language.setdefault(record.get("language"), []).append(index)
    for index, record in enumerate(records):
        if "chosen" in record and "rejected" in record:
            pairs.append(record)
            continue
        require_lesson(record)
        if "concept" in record:
            made = poor_completions(record, seed=seed)
        else:
            made = _poor_of_others(records, by_language, index, seed)
        usable = sorted(
            (fault for fault in faults if fault in made),
            key=lambda fault: stable_hash(seed, fault, record["prompt"]),
        )
        texts = dict.fromkeys(c["completion"] for c in record.get("candidates", ()))
        poor = [("model", text) for text in texts if _poor(record, text)]
        poor += [(fault, made[fault]) for fault in usable[:per_record]]
        kept = {k: v for k, v in record.items() if k not in ("completion", "candidates")}
        for fault, text in poor:
            pairs.append({**kept, "chosen": record["completion"], "rejected": text, "fault": fault})
    return pairs
