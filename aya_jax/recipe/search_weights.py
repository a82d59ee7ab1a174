"""`aya search-weights`: merges that are tried on held-out records, and the best of them made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gin
import numpy as np

from aya_jax.compat import versions
from aya_jax.data.files import atomic_write, fingerprint, told_plainly
from aya_jax.data.languages import LANGUAGES
from aya_jax.data.records import Record, read_records
from aya_jax.errors import AyaError
from aya_jax.evaluation.bootstrap import Figure, summarise
from aya_jax.merging.merge import merge_into, opened
from aya_jax.merging.methods import method_of
from aya_jax.merging.search import (
    Evaluate,
    Point,
    Space,
    Trial,
    best_of,
    run_search,
    search_of,
)
from aya_jax.merging.settings import EACH, MergeConfig, merge_config
from aya_jax.merging.trials import Merger, merge_at
from aya_jax.progress import Terminal
from aya_jax.recipe.measures import Measure, fields_of, measure_of
from aya_jax.recipe.run_directory import open_work
from aya_jax.recipe.settings import effective_settings
from aya_jax.recipe.stages import code_version
from aya_jax.recipe.verbs import commit, require_free
from aya_jax.report.search_page import render_search
from aya_jax.sharding.processes import by_lead, from_lead

TRIALS = "trials.jsonl"
# Settings that a search may vary: those that are numbers.
VARIED = (*EACH, "scale")


@gin.configurable("search_weights")
def search_settings(*, seed: int = 0) -> int:
    """Return the seed of a search that draws.

    Args:
      seed: of CMA-ES.
    """
    return seed


def search_weights_verb(
    models: Sequence[str],
    *,
    base: str | None,
    method: str | None,
    search: str,
    limit: int | None,
    vary: Mapping[str, Sequence[float]],
    evaluate: str,
    records: str,
    reward_model: str | None,
    opponent: str | None,
    out: str,
) -> None:
    """`aya search-weights`: try merges, make the best one.

    Beside the model `out` has `trials.jsonl` (a line a merge), `search.json` and `search.html`. What a killed
    attempt with the same models, records and settings left in `OUT.partial` is gone on from.

    Args:
      models, base, method: as of a merge; `merge.` of gin has its other settings.
      search: of `search.SEARCHES`.
      limit: the most merges to try.
      vary: settings that are searched as well, and their values; see `search.Space`.
      evaluate: of `measures.MEASURES`.
      records: a file of held-out records.
      reward_model, opponent: see `measures.measure_of`.
      out: the model directory to make.

    Raises:
      AyaError: a file or model cannot be used, the models do not fit together, or the search cannot be made.
    """
    place = Path(out).absolute()
    by_lead(lambda: require_free(place))
    config = _config(models, base, method)
    space = _space(config, vary)
    seed = search_settings()
    proposals = search_of(search, space, limit=limit, seed=seed)
    # A setting that is out of range is told now, not after an evening of trials.
    for values in zip(*space.spans, strict=True):
        with opened(merge_at(config, Point(space.equal(), dict(zip(vary, values, strict=True))))):
            pass
    rows = read_records(records, required=fields_of(evaluate))
    work = place.with_name(f"{place.name}.partial")
    merger = Merger(config, work)
    measure = measure_of(evaluate, rows, reward_model=reward_model, opponent=opponent)
    made_of = made_from(config, merger, measure, rows, (reward_model, opponent))
    open_work(work, from_lead(fingerprint([made_of])))
    line = Terminal().stage("search-weights", 1, 1)
    outcome = "stopped"
    try:
        with told_plainly(place):
            trials = run_search(
                proposals,
                evaluated(merger, measure),
                file=work / TRIALS,
                made_of=made_of,
                limit=limit,
                tell=lambda trial, number: line.update(
                    number, max(number, limit or 0), {"score": trial.score}
                ),
            )
            by_lead(merger.clear)
            best = best_of(trials)
            content = search_content(config, search, measure, rows, trials)
            merge_into(work, merge_at(config, best.point), stage="search-weights")
            by_lead(lambda: finish(work, place, "search", content, render_search(content)))
        outcome = f"{len(trials)} merges  best {best.score:.4g}  {out}"
    finally:
        line.close(outcome)
    _show(content, Terminal())


def _config(models: Sequence[str], base: str | None, method: str | None) -> MergeConfig:
    chosen = {} if method is None else {"method": method}
    return merge_config(models=models, **({} if base is None else {"base": base}), **chosen)


def _space(config: MergeConfig, vary: Mapping[str, Sequence[float]]) -> Space:
    method = method_of(config.method)
    for name in vary:
        if name not in VARIED or name not in method.options:
            known = sorted(method.options & set(VARIED))
            told = ", ".join(known) if known else "none"
            raise AyaError(
                f"search: {config.method!r} has no number {name!r} to search; it has {told}"
            )
    given = config.slices[0].shared.get("normalize")
    normalize = method.normalize if given is None else bool(given)
    return Space(len(config.models), method.sums_to_one, normalize, vary)


def made_from(
    config: MergeConfig,
    merger: Merger,
    measure: Measure,
    records: Sequence[Record],
    others: Sequence[str | None],
) -> dict[str, Any]:
    """Return all that what is found of a merge follows from, but for its weights and searched settings."""
    return {
        "merge": repr(replace(config, models=(), base=None)),
        "models": merger.fingerprints,
        "measure": measure.name,
        "settings": effective_settings(measure.uses, ""),
        "records": fingerprint(list(records)),
        "others": [None if path is None else _fingerprint(path) for path in others],
        "code": code_version(),
    }


def _fingerprint(path: str) -> Any:
    file = Path(path, "lineage.json")
    if file.is_file():
        return json.loads(file.read_text("utf-8")).get("params_fingerprint")
    files = sorted(each for each in Path(path).iterdir() if each.is_file())
    return [[each.name, each.stat().st_size, each.stat().st_mtime_ns] for each in files]


def evaluated(merger: Merger, measure: Measure) -> Evaluate:
    """Return what evaluates a merge: its `score`, and the `values` that this is the mean of.

    Both are None where one of them is no number.
    """

    def of(point: Point) -> dict[str, Any]:
        with merger.merged(point) as model:
            values = measure.of(model)
        if not np.isfinite(values).all():
            return {"score": None, "values": None}
        return {
            "score": float(values.mean()),
            "values": [float(f"{value:.7g}") for value in values],
        }

    return of


def search_content(
    config: MergeConfig,
    search: str,
    measure: Measure,
    records: Sequence[Record],
    trials: Sequence[Trial],
) -> dict[str, Any]:
    """Return the content of `search.json`, from which the page is drawn.

    `differences` has how far the best merge is above others, record by record: above equal weights, and
    above the best model alone, where those were tried. The best was chosen by the same records, so that its own
    interval says too much of it; other records tell its worth.
    """
    codes = [record.get("language", "und") for record in records]
    best = best_of(trials)
    alone = [t for t in trials if sorted(t.point.weights)[:-1] == [0.0] * (len(config.models) - 1)]
    equal = [t for t in trials if np.ptp(t.point.weights) == 0]
    rivals = {"equal weights": equal, "the best single model": alone}
    return {
        "measure": measure.name,
        "records": len(records),
        "method": config.method,
        "search": search,
        "models": names_of(config.models),
        "base": None if config.base is None else Path(config.base).name,
        "languages": {code: language.name for code, language in LANGUAGES.items()},
        "trials": [
            {**asdict(trial.point), "figure": _figure(trial, codes), "best": trial is best}
            for trial in trials
        ],
        "differences": {
            name: _difference(best, max(those, key=lambda t: t.score), codes)
            for name, those in rivals.items()
            if any(trial.found["values"] for trial in those)
        },
        "versions": versions(),
    }


def names_of(paths: Sequence[str]) -> list[str]:
    """Return the last parts of paths, or all of these where two are the same."""
    names = [Path(path).resolve().name for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def _figure(trial: Trial, codes: Sequence[str]) -> Figure | None:
    values = trial.found["values"]
    return None if values is None else summarise(values, codes)


def _difference(best: Trial, other: Trial, codes: Sequence[str]) -> Figure:
    pairs = zip(best.found["values"], other.found["values"], strict=True)
    return summarise([ours - theirs for ours, theirs in pairs], codes)


def finish(work: Path, place: Path, name: str, content: Mapping[str, Any], page: str) -> None:
    """Write what was found as `NAME.json` and its page as `NAME.html`, and give the work its place."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    atomic_write(work / f"{name}.json", text)
    atomic_write(work / f"{name}.html", page)
    commit(work, place)


def _show(content: Mapping[str, Any], terminal: Terminal) -> None:
    ranked = sorted(
        (trial for trial in content["trials"] if trial["figure"]),
        key=lambda trial: -trial["figure"]["overall"]["value"],
    )
    names = list(ranked[0]["settings"])
    rows = [
        (
            " ".join(f"{weight:.3g}" for weight in trial["weights"]),
            *(f"{trial['settings'][name]:.3g}" for name in names),
            *(f"{trial['figure']['overall'][key]:.4f}" for key in ("value", "low", "high")),
        )
        for trial in ranked[:10]
    ]
    title = f"{content['method']} of {', '.join(content['models'])}: the best of {len(content['trials'])}"
    terminal.table(title, ("weights", *names, content["measure"], "low", "high"), rows)
