"""Routers choose, for each prompt, the candidate that becomes training data.

`reward` is the reference of "Multilingual Arbitrage" (arXiv 2408.14960), `fixed` and `learned` need
fewer completions, and `random` and `single` are the rivals that they are measured against.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import gin

from aya_jax.arbitrage.learned_router import learned_routes
from aya_jax.data.records import Record
from aya_jax.errors import AyaError, nearest

Candidate = dict[str, object]
ROUTERS = ("reward", "random", "single", "fixed", "learned")


def _reward(candidates: Sequence[Candidate]) -> Candidate:
    """The highest reward; of equals the first in the pool."""
    return max(candidates, key=lambda c: c["reward"])  # type: ignore[arg-type, return-value]


def _random(record: Record, seed: int) -> Candidate:
    """A candidate drawn by (seed, language, prompt), whatever the order of the records."""
    key = f"{seed}\0{record.get('language')}\0{record['prompt']}".encode()
    draw = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
    return record["candidates"][draw % len(record["candidates"])]


def _of(record: Record, teacher: str) -> Candidate | None:
    return next((c for c in record["candidates"] if c["model"] == teacher), None)


@gin.configurable(denylist=["records"])
def route(
    records: Sequence[Record],
    *,
    router: str = "reward",
    teacher: str | None = None,
    teachers: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Return SFT records: each prompt with the completion of the chosen teacher.

    Args:
      records: with `candidates`.
      router: `reward` (highest reward), `random`, `single` (one teacher for all: `teacher`, or the
        one that is best most often), `fixed` (one teacher a language: `teachers`, or the one that is
        best in it most often), or `learned` (the one that a small model predicts from
        the prompt; its settings are `train_router.*` and `learned_routes.*`).
      teacher: for `single`.
      teachers: language to teacher, for `fixed`.
      seed: for `random`, and for the folds of `learned`.

    Records that the chosen teacher did not answer are left out.

    Raises:
      AyaError: an unknown router or teacher, or no record is left.
    """
    names = sorted({str(c["model"]) for r in records for c in r["candidates"]})
    for given in ([teacher] if teacher else []) + list((teachers or {}).values()):
        if given not in names:
            raise AyaError(f"route: no candidate is from teacher {given!r}{nearest(given, names)}")
    if router == "reward":
        chosen = [_reward(r["candidates"]) for r in records]
    elif router == "random":
        chosen = [_random(r, seed) for r in records]
    elif router == "single":
        one = teacher or best_teacher(records)
        chosen = [_of(r, one) for r in records]  # type: ignore[misc]
    elif router == "fixed":
        by_language: dict[str | None, list[Record]] = defaultdict(list)
        for record in records:
            by_language[record.get("language")].append(record)
        known = {code: best_teacher(part) for code, part in by_language.items()}
        known.update(teachers or {})
        chosen = [_of(r, known[r.get("language")]) for r in records]  # type: ignore[misc]
    elif router == "learned":
        predicted = learned_routes(records, seed=seed)
        chosen = list(map(_of, records, predicted))  # type: ignore[arg-type]
    else:
        raise AyaError(f"route: unknown router {router!r}{nearest(router, ROUTERS)}")
    routed = []
    for record, candidate in zip(records, chosen, strict=True):
        if candidate is not None:
            kept = {k: v for k, v in record.items() if k != "candidates"}
            routed.append(
                {**kept, "completion": candidate["completion"], "source": candidate["model"]}
            )
    if not routed:
        raise AyaError(f"route: router {router!r} left no record; its teacher answered none")
    return routed


def best_teacher(records: Sequence[Record]) -> str:
    """Return the teacher whose answer has the highest reward most often; of equals the first by name.

    Wins are counted, not rewards averaged: a specialist that answers half of the prompts best must
    not lose to a middling one because it answers the other half very badly.
    """
    wins = Counter(str(_reward(record["candidates"])["model"]) for record in records)
    return min(wins, key=lambda name: (-wins[name], name))


def routing_counts(routed: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Return how often each teacher was chosen, by language: `{code: {teacher: count}}`."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in routed:
        counts[record.get("language", "und")][record["source"]] += 1
    return {code: dict(sorted(counter.items())) for code, counter in sorted(counts.items())}
