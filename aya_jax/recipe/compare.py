"""`aya compare`: how far models are from each other, and the loss on the way from one to the other."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from aya_jax.compat import versions
from aya_jax.data.files import fingerprint, told_plainly
from aya_jax.data.records import Record, read_records
from aya_jax.errors import AyaError
from aya_jax.evaluation.bootstrap import interval
from aya_jax.merging.diagnosis import barrier, diagnose
from aya_jax.merging.merge import opened
from aya_jax.merging.search import Point, Trial, listed, run_search
from aya_jax.merging.settings import MergeConfig
from aya_jax.merging.trials import Merger
from aya_jax.progress import Terminal
from aya_jax.recipe.measures import fields_of, measure_of
from aya_jax.recipe.run_directory import open_work
from aya_jax.recipe.search_weights import TRIALS, evaluated, finish, made_from, names_of
from aya_jax.recipe.verbs import require_free
from aya_jax.report.compare_page import render_comparison
from aya_jax.sharding.processes import by_lead, from_lead


def compare_verb(
    models: Sequence[str], *, base: str | None, records: str | None, points: int, out: str
) -> None:
    """`aya compare`: `comparison.json` and `comparison.html` into a new folder.

    With records there is the loss on them on the straight line between any two models. What a killed
    attempt left of it in `OUT.partial` is gone on from.

    Args:
      models: directories, two or more.
      base: what they were trained from; without it there are distances alone.
      records: a file of records with `completion`.
      points: on each line, both ends among them.
      out: the folder to make.

    Raises:
      AyaError: a file or model cannot be used, or the models do not fit together.
    """
    place = Path(out).absolute()
    if len(models) < 2:
        raise AyaError("compare: there is one model; give two or more")
    if points < 3:
        raise AyaError(f"compare: --points is {points}; it must be at least 3")
    by_lead(lambda: require_free(place))
    rows = None if records is None else read_records(records, required=fields_of("loss"))
    straight = MergeConfig(tuple(models))
    # A method on differences has its base read.
    differences = MergeConfig(tuple(models), "task_arithmetic", base)
    work = place.with_name(f"{place.name}.partial")
    line = Terminal().stage("compare", 1, 1)
    outcome = "stopped"
    try:
        with told_plainly(place):
            with opened(straight if base is None else differences) as (merge, _):
                found = by_lead(lambda: diagnose(merge.sources, merge.base))
            content: dict[str, Any] = {
                "models": names_of(models),
                "base": None if base is None else Path(base).resolve().name,
                **found,
                "curves": [],
                "records": len(rows or ()),
                "versions": versions(),
            }
            made_of: Any = found
            if rows is not None:
                merger = Merger(straight, work)
                measure = measure_of("loss", rows)
                made_of = made_from(straight, merger, measure, rows, ())
            open_work(work, from_lead(fingerprint([made_of])))
            if rows is not None:
                lines = _lines(len(models), points)
                todo = [point for line_ in lines.values() for point in line_.values()]
                trials = run_search(
                    listed(todo),
                    evaluated(merger, measure),
                    file=work / TRIALS,
                    made_of=made_of,
                    tell=lambda trial, number: line.update(
                        number, len({each.weights for each in todo}), {"loss": -trial.score}
                    ),
                )
                by_lead(merger.clear)
                content["curves"] = _curves(lines, trials, content["models"], rows)
            by_lead(lambda: finish(work, place, "comparison", content, render_comparison(content)))
        outcome = out
    finally:
        line.close(outcome)
    _show(content, Terminal())


def _lines(count: int, points: int) -> dict[tuple[int, int], dict[float, Point]]:
    """Return the merges on the way from each model to each later one, by their place t on it."""
    lines = {}
    for one, other in combinations(range(count), 2):
        line = {}
        for step in range(points):
            t = step / (points - 1)
            weights = [0.0] * count
            weights[one], weights[other] = 1 - t, t
            line[t] = Point(tuple(weights))
        lines[one, other] = line
    return lines


def _curves(
    lines: Mapping[tuple[int, int], Mapping[float, Point]],
    trials: Sequence[Trial],
    names: Sequence[str],
    records: Sequence[Record],
) -> list[dict[str, Any]]:
    """Return the loss on each line by t, with intervals; without what is no number.

    `barrier` is where it is highest above the straight line between the losses of the two models, and
    `half` how far it is above that half way, or below it where merging the two gains.
    """
    by_weights = {trial.point.weights: trial.found["values"] for trial in trials}
    codes = np.asarray([record.get("language", "und") for record in records])
    curves = []
    for (one, other), line in lines.items():
        values = {
            t: -np.asarray(found)
            for t, point in line.items()
            if (found := by_weights[point.weights]) is not None
        }
        curve: dict[str, Any] = {
            "models": [names[one], names[other]],
            "points": [{"t": t, **interval(each, codes)} for t, each in values.items()],
            "barrier": None,
            "half": None,
        }
        if {0.0, 1.0} <= values.keys():

            def height(t: float, values: Mapping[float, Any] = values) -> dict[str, Any]:
                above = values[t] - (1 - t) * values[0.0] - t * values[1.0]
                return {"t": t, **interval(above, codes)}

            curve["barrier"] = height(barrier({t: v.mean() for t, v in values.items()})[1])
            curve["half"] = height(0.5) if 0.5 in values else None
        curves.append(curve)
    return curves


def _show(content: Mapping[str, Any], terminal: Terminal) -> None:
    names, whole = content["models"], content["all"]
    barriers = {tuple(curve["models"]): curve["barrier"] for curve in content["curves"]}
    rows = []
    for one, other in combinations(range(len(names)), 2):
        row = [f"{names[one]} : {names[other]}", f"{whole['distance'][one][other]:.4g}"]
        for key in ("cosine", "opposite"):
            value = whole.get(key, [[None] * len(names)] * len(names))[one][other]
            row.append("-" if value is None else f"{value:.3f}")
        height = barriers.get((names[one], names[other]))
        row.append("-" if height is None else f"{height['value']:.4f}")
        rows.append(row)
    columns = ("models", "distance", "cosine", "opposite signs", "loss barrier")
    terminal.table("all entries", columns, rows)
