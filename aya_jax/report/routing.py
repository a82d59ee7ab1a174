"""Which teacher was chosen how often, for each language: a bar in each cell of a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from aya_jax.report.words import label


def routing_table(
    counts: Mapping[str, Mapping[str, int]], order: Sequence[str], teachers: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row for each language: its prompts, and each teacher's count and share of them."""
    rows = []
    for code in order:
        if code in counts:
            total = sum(counts[code].values())
            won = [counts[code].get(teacher, 0) for teacher in teachers]
            rows.append(
                {
                    "code": code,
                    "total": total,
                    "cells": [{"count": n, "share": n / total, "most": n == max(won)} for n in won],
                }
            )
    return rows


def teachers_of(
    routing: Mapping[str, Mapping[str, Mapping[str, int]]], order: Sequence[str]
) -> list[str]:
    """Return every teacher that any router chose: those in `order` as there, then by name."""
    chosen = {t for router in routing.values() for won in router.values() for t in won}
    first = [teacher for teacher in order if teacher in chosen]
    return [*first, *sorted(chosen - set(first))]


def grouped(counts: Mapping[str, Mapping[str, int]], teachers: Sequence[str]) -> list[str]:
    """Return the languages so that those with the same most frequent teacher stand together."""

    def key(code: str) -> tuple[int, float, str]:
        won = [counts[code].get(teacher, 0) for teacher in teachers]
        return won.index(max(won)), -max(won) / max(1, sum(won)), code

    return sorted(counts, key=key)


def totals(rows: Sequence[Mapping[str, Any]], teachers: Sequence[str]) -> list[dict[str, Any]]:
    """Return each teacher's share over all languages."""
    total = sum(row["total"] for row in rows)
    out = []
    for i, teacher in enumerate(teachers):
        count = sum(row["cells"][i]["count"] for row in rows)
        out.append({"label": label(teacher), "count": count, "share": count / max(1, total)})
    return out
