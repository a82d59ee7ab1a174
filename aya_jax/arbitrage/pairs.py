"""Preference pairs from scored candidates: the best against the worst, offline and online alike."""

from collections.abc import Sequence

import gin

from aya_jax.data.records import Record


@gin.configurable(denylist=["records"])
def best_against_worst(records: Sequence[Record], *, min_gap: float = 0.0) -> list[Record]:
    """Return preference records: highest against lowest reward among each prompt's candidates.

    Source: the Aya Expanse report (arXiv 2412.04261), offline and online preference training.

    Args:
      records: with `candidates`.
      min_gap: the least difference of rewards; a prompt whose candidates are all the same text, or
        closer than this, teaches nothing and is left out.
    """
    pairs = []
    for record in records:
        ranked = sorted(record["candidates"], key=lambda c: -c["reward"])
        best, worst = ranked[0], ranked[-1]
        gap = best["reward"] - worst["reward"]
        if best["completion"] == worst["completion"] or gap <= min_gap:
            continue
        kept = {k: v for k, v in record.items() if k not in ("candidates", "completion")}
        pairs.append(
            {
                **kept,
                "chosen": best["completion"],
                "rejected": worst["completion"],
                "chosen_reward": best["reward"],
                "rejected_reward": worst["reward"],
            }
        )
    return pairs
