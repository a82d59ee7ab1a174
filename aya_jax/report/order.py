"""The recipe's order, for a report whose keys a file has sorted."""

from collections.abc import Mapping
from typing import Any


def in_order(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report with its models, histories and lineages in the order of their stages.

    So a page is the same whether its report comes from memory or from `report.json`, which sorts
    its keys. What no stage has made comes last, by name.
    """
    names = [stage["name"] for stage in report.get("stages", ())]
    names += report.get("steps_of_recipe", ())
    place = {name: i for i, name in reversed(list(enumerate(names)))}

    def arranged(part: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        def key(name: str) -> tuple[int, str]:
            return place.get(f"{prefix}{name}", place.get(name, len(place))), name

        return {name: part[name] for name in sorted(part, key=key)}

    out = dict(report)
    out["models"] = arranged(report["models"], "evaluate.")
    for name in ("history", "lineage", "reward_models"):
        out[name] = arranged(report.get(name, {}))
    seeds = [str(seed) for seed in report.get("seeds", ())]
    if report.get("overall"):
        out["overall"] = {seed: report["overall"][seed] for seed in seeds}
    out["comparisons"] = [
        {**c, "difference": {seed: c["difference"][seed] for seed in seeds}}
        for c in report.get("comparisons", ())
    ]
    out["samples"] = [
        {**row, "completions": arranged(row.get("completions", {}), "evaluate.")}
        for row in report.get("samples", ())
    ]
    return out
