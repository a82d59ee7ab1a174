"""`report.json` to `report.html`: one file that needs nothing else, the same for the same report."""

from collections.abc import Mapping, Sequence
from typing import Any

from aya_jax.report import (
    compare_page,
    curves,
    gains,
    heatmap,
    intervals,
    lineage,
    routing,
    samples,
    times,
)
from aya_jax.report.environment import page_template
from aya_jax.report.headline import sentence, tiles
from aya_jax.report.order import in_order
from aya_jax.report.words import (
    METRICS,
    REWARDS,
    ROUTERS,
    WIN_RATES,
    difference_text,
    excludes,
    figure_text,
    interval_of,
    label,
    language_name,
    readable,
    value_of,
)

Report = Mapping[str, Any]
REWARD_MODELS = {"reward": "reward model", "judge": "unused judge"}


def render(report: Report) -> str:
    """Return the page of a run or of a study.

    Args:
      report: the content of `report.json`; what it lacks (reward models, samples, ...) the page
        leaves out. `models`, `final` and `opponent` it must have.
    """
    report = in_order(report)
    models = report["models"]
    steps = list(dict.fromkeys(m for m in report.get("steps_of_recipe", models) if m in models))
    seeds = _seeds(report)
    languages = report.get("languages", {})
    codes = _codes(models)
    names = {code: language_name(code, languages) for code in codes}
    made = report.get("lineage", {})
    return page_template("page.html").render(
        title=f"{report.get('recipe', 'run')}: what each step of the recipe gained",
        recipe=report.get("recipe", "run"),
        seeds=list(seeds),
        final=report["final"],
        opponent=report["opponent"],
        headline=sentence(report["final"], report["opponent"], seeds),
        tiles=tiles(report["final"], report["opponent"], seeds),
        gains=_gains(report, steps, seeds),
        claims=_claims(report.get("comparisons", ())),
        questions=list(dict.fromkeys(c["question"] for c in report.get("comparisons", ()))),
        maps=[
            heatmap.heat_map(models, metric, codes, names)
            for metric in METRICS
            if any(metric in figures for figures in models.values())
        ],
        pooled=_pooled(report.get("pooled", {}), names),
        kinds=_kinds(models),
        table=_table(models, steps),
        seed_tables=_seed_tables(seeds, models) if len(seeds) > 1 else [],
        routing=_routing(report, languages),
        samples=samples.by_language(report.get("samples", ()), steps, languages),
        graph=lineage.graph(made, report["final"]) if report["final"] in made else None,
        origins=lineage.rows(made),
        diagnosis=compare_page.of_merges(report.get("diagnosis", {})),
        reward_models=_reward_models(report.get("reward_models", {}), languages),
        curves=[
            {
                "title": title,
                "panels": [
                    {
                        "title": panel.title,
                        "metric": curves.METRICS[panel.metric],
                        "chart": curves.draw(panel),
                    }
                    for panel in found
                ],
            }
            for title, found in curves.panels(report.get("history", {}), steps).items()
        ],
        times=times.table(report.get("stages", ())),
        settings=readable(report.get("settings", "")),
        versions=report.get("versions", {}),
    )


def _pooled(
    models: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return a table a metric of the means over all seeds: a row a language, a column a model."""
    metrics = [m for m in METRICS if any(m in figures for figures in models.values())]
    return [
        {
            "metric": metric,
            "label": METRICS[metric][0],
            "meaning": METRICS[metric][1],
            "models": list(models),
            "rows": [
                (name, [_part(metric, figures.get(metric), code) for figures in models.values()])
                for code, name in {"": "All languages", **names}.items()
            ],
        }
        for metric in metrics
    ]


def _part(metric: str, figure: Mapping[str, Any] | None, code: str) -> str:
    """Return a figure of one language, or of all for ""."""
    if figure is None:
        return ""
    part = figure["by_language"].get(code) if code else figure["overall"]
    return figure_text(metric, part) if part else ""


def _seeds(report: Report) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Return seed to model to metric to the figure over all languages; a run is one seed."""
    if report.get("overall"):
        return dict(report["overall"])
    return {
        str(report.get("seed", 0)): {
            model: {metric: figure["overall"] for metric, figure in figures.items()}
            for model, figures in report["models"].items()
        }
    }


def _codes(models: Mapping[str, Any]) -> list[str]:
    return sorted(
        {
            code
            for figures in models.values()
            for figure in figures.values()
            for code in figure.get("by_language", {})
        }
    )


def _gains(report: Report, steps: Sequence[str], seeds: Any) -> list[dict[str, Any]]:
    opponent = report["opponent"]
    out = []
    for metric, title in (
        ("win_rate", f"Win rate against {label(opponent)}"),
        ("correct", "Correct answers"),
    ):
        if not any(metric in figures for m in seeds.values() for figures in m.values()):
            continue
        line: float | None = 0.5
        meaning = "50%, as good as the opponent"
        if metric == "correct":
            known = [m[opponent][metric]["value"] for m in seeds.values() if opponent in m]
            line = sum(known) / len(known) if known else None
            meaning = f"as often as {label(opponent)}"
        chart = gains.gain_chart(metric, title, steps, seeds, opponent=opponent, line=line)
        out.append(
            {
                "title": title,
                "meaning": METRICS[metric][1],
                "line": meaning if line is not None else "",
                "chart": chart,
            }
        )
    return out


def _claims(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the claims in order, each with the comparisons of its metrics."""
    spans = {
        metric: intervals.span_of([c for c in comparisons if c["metric"] == metric])
        for metric in {c["metric"] for c in comparisons}
    }
    claims: dict[str, list[dict[str, Any]]] = {}
    arms: dict[str, list[str]] = {}
    for comparison in comparisons:
        metric = comparison["metric"]
        figures = comparison["difference"].values()
        shown = sum(f["low"] > 0 for f in figures)
        against = sum(f["high"] < 0 for f in figures)
        verdict = "mixed"
        if shown == len(figures):
            verdict = "shown"
        elif against == len(figures):
            verdict = "opposite"
        elif not shown and not against:
            verdict = "open"
        arms[comparison["claim"]] = [label(arm) for arm in comparison["arms"]]
        claims.setdefault(comparison["claim"], []).append(
            {
                "question": comparison["question"],
                "unit": "difference of rewards" if metric in REWARDS else "difference in points",
                "verdict": comparison["verdict"],
                "state": verdict,
                "chart": intervals.forest(comparison, spans[metric]),
                "rows": [
                    {
                        "seed": seed,
                        "arms": [
                            figure_text(metric, comparison["seeds"][seed][arm])
                            for arm in comparison["arms"]
                        ],
                        "difference": difference_text(metric, figure),
                    }
                    for seed, figure in comparison["difference"].items()
                ],
            }
        )
    return [{"claim": c, "arms": arms[c], "comparisons": found} for c, found in claims.items()]


def _kinds(models: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the map of correct answers by kind of task, if the prompts have kinds."""
    kinds = sorted({k for m in models.values() for k in m.get("correct", {}).get("by_kind", {})})
    if not kinds:
        return None
    names = {kind: kind.replace("_", " ") for kind in kinds}
    return heatmap.heat_map(models, "correct", kinds, names, part="by_kind")


def _table(models: Mapping[str, Any], steps: Sequence[str]) -> dict[str, Any]:
    metrics = [m for m in METRICS if any(m in figures for figures in models.values())]
    return {
        "columns": [METRICS[m][0] for m in metrics],
        "rows": [
            {
                "model": name,
                "on_path": name in steps,
                "cells": [
                    {
                        "value": value_of(m, figures[m]["overall"]),
                        "interval": interval_of(m, figures[m]["overall"]),
                        "sure": m in WIN_RATES and excludes(figures[m]["overall"], 0.5),
                    }
                    if m in figures
                    else None
                    for m in metrics
                ],
            }
            for name, figures in models.items()
        ],
    }


def _seed_tables(seeds: Any, models: Mapping[str, Any]) -> list[dict[str, Any]]:
    out = []
    for metric, (name, meaning) in METRICS.items():
        rows = [
            {
                "model": model,
                "cells": [
                    figure_text(metric, m[model][metric]) if metric in m.get(model, {}) else None
                    for m in seeds.values()
                ],
            }
            for model in models
        ]
        rows = [row for row in rows if any(row["cells"])]
        if rows:
            out.append({"metric": metric, "label": name, "meaning": meaning, "rows": rows})
    return out


def _reward_models(found: Mapping[str, Any], languages: Mapping[str, Any]) -> dict[str, Any] | None:
    if not found:
        return None
    models = {REWARD_MODELS.get(name, label(name)): figures for name, figures in found.items()}
    codes = sorted({code for figures in models.values() for code in figures["by_language"]})
    names = {code: language_name(code, languages) for code in codes}
    return {"models": list(models), "chart": intervals.pair_accuracy(models, names)}


def _routing(report: Report, languages: Mapping[str, Any]) -> dict[str, Any] | None:
    by_router = report.get("routing", {})
    routers = [r for r in dict.fromkeys([*ROUTERS, *by_router]) if r in by_router]
    if not routers:
        return None
    trained = [stage["name"].removeprefix("teacher.") for stage in report.get("stages", ())]
    teachers = routing.teachers_of(by_router, trained)
    order = routing.grouped(by_router[routers[0]], teachers)
    order += sorted({c for r in by_router.values() for c in r} - set(order))
    tables = []
    for router in routers:
        rows = routing.routing_table(by_router[router], order, teachers)
        tables.append(
            {
                "router": router,
                "label": ROUTERS.get(router, label(router)),
                "rows": rows,
                "totals": routing.totals(rows, teachers),
            }
        )
    names = {code: language_name(code, languages) for code in order}
    return {"teachers": [label(t) for t in teachers], "names": names, "tables": tables}
