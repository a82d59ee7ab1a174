"""Searches for the weights of a merge: which merges are tried, in which order, and what is kept of each.

A search is a generator that yields what to try and is sent its score. It follows from the scores alone, so one
that was killed is gone on from by sending it those that are on the disk.
"""

import json
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from cmaes import CMA

from aya_jax.data.files import fingerprint
from aya_jax.errors import AyaError
from aya_jax.sharding.processes import by_lead

# The contributions that "Mix Data or Merge Models" tries (arXiv 2410.10801).
GRID = (0.0, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Point:
    """A merge to try: one weight a model, and the settings that are searched, by their names."""

    weights: tuple[float, ...]
    settings: Mapping[str, float] = field(default_factory=dict)


Search = Generator[Point, float, None]
# What is found of a merge: JSON-able, with its `score`, the higher the better.
Evaluate = Callable[[Point], Mapping[str, Any]]


@dataclass(frozen=True)
class Space:
    """What can be tried.

    Attributes:
      models: how many.
      sums_to_one: whether the method takes only weights that do.
      normalize: whether it divides by their sum, so that only their proportions count.
      vary: values of each setting that is searched as well; a grid tries these, an optimiser all
        between the least and the greatest.
    """

    models: int
    sums_to_one: bool = True
    normalize: bool = False
    vary: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def spans(self) -> list[tuple[float, float]]:
        """The least and the greatest value of each setting that is searched."""
        return [(min(values), max(values)) for values in self.vary.values()]

    def shares(self, members: Sequence[int]) -> tuple[float, ...]:
        """Return equal weights, that sum to one, for some of the models."""
        return tuple((i in members) / len(members) for i in range(self.models))

    def equal(self) -> tuple[float, ...]:
        """Return the weights of a merge that nobody searched."""
        return self.shares(range(self.models))


@dataclass(frozen=True)
class Trial:
    """A merge that was tried; `score` is -inf where what was found is no number."""

    point: Point
    score: float
    found: Mapping[str, Any]


def grid_points(space: Space, values: Sequence[float] = GRID) -> list[Point]:
    """Return all points of the grid; those of equal weights come first, on the grid or not.

    As in the paper the contributions of two models are `values` that sum to one. So it is with more models for
    methods whose weights must: they then mix no more than two at a time. Where the method divides by the sum
    there is one point for each proportion of `values`, and else one for each choice of them but all zeros.
    """
    found: dict[tuple[float, ...], tuple[float, ...]] = {}
    for chosen in product(values, repeat=space.models):
        total = math.fsum(chosen)
        if total == 0 or (space.sums_to_one and not space.normalize and abs(total - 1) > 1e-9):
            continue
        weights = tuple(w / total for w in chosen) if space.normalize else chosen
        found.setdefault(tuple(round(w, 9) for w in weights), weights)
    equal = space.equal()
    found.pop(tuple(round(w, 9) for w in equal), None)
    return [
        Point(weights, dict(zip(space.vary, settings, strict=True)))
        for settings in product(*space.vary.values())
        for weights in (equal, *found.values())
    ]


def listed(points: Sequence[Point]) -> Search:
    """Try points one after the other."""
    for point in points:  # noqa: UP028 (a list cannot be sent the scores)
        yield point


def greedy_soup(space: Space) -> Search:
    """Try each model alone, then add one after the other, best first, where that does not harm.

    Those that are in have equal shares (arXiv 2203.05482, algorithm 1).
    """
    alone = []
    for model in range(space.models):
        alone.append((yield Point(space.shares([model]))))
    first, *rest = sorted(range(space.models), key=lambda model: -alone[model])
    soup, best = [first], alone[first]
    for model in rest:
        score = yield Point(space.shares([*soup, model]))
        if score >= best:
            soup, best = [*soup, model], score


def cma_es(space: Space, *, seed: int = 0) -> Search:
    """Try equal weights, then what CMA-ES asks for (arXiv 1604.00772; for merging, arXiv 2403.13187).

    Weights are within 0 and 1; where they must sum to one, or only their proportions count, they are divided
    by their sum. It ends when it has converged.
    """

    def at(place: np.ndarray) -> Point:
        weights = [float(w) for w in place[: space.models]]
        if space.sums_to_one or space.normalize:
            total = math.fsum(weights)
            weights = [w / total for w in weights] if total else list(space.equal())
        settings = [
            low + float(share) * (high - low)
            for share, (low, high) in zip(place[space.models :], space.spans, strict=True)
        ]
        return Point(tuple(weights), dict(zip(space.vary, settings, strict=True)))

    size = space.models + len(space.vary)
    middle = np.full(size, 0.5)
    yield Point(space.equal(), at(middle).settings)
    bounds = np.tile([0.0, 1.0], (size, 1))
    optimizer = CMA(mean=middle, sigma=0.25, bounds=bounds, seed=seed)
    while not optimizer.should_stop():
        told = []
        for _ in range(optimizer.population_size):
            place = optimizer.ask()
            score = yield at(place)
            told.append((place, -score))
        optimizer.tell(told)


SEARCHES = ("grid", "greedy", "cma_es")


def search_of(name: str, space: Space, *, limit: int | None = None, seed: int = 0) -> Search:
    """Return a search by its name.

    Args:
      name: of `SEARCHES`.
      space: what can be tried.
      limit: the most merges to try.
      seed: of CMA-ES.

    Raises:
      AyaError: an unknown name, fewer than two models, a search that would not end or be cut short, or
        one that does not search the settings in `space.vary`.
    """
    if space.models < 2:
        raise AyaError(f"search: {space.models} model leaves nothing to search; give two or more")
    if name == "grid":
        points = grid_points(space)
        if limit is not None and len(points) > limit:
            raise AyaError(
                f"search: the grid has {len(points)} merges, more than the {limit} trials; give more, "
                "or search by greedy or cma_es"
            )
        return listed(points)
    if name == "greedy":
        if space.vary:
            raise AyaError("search: greedy searches no settings; leave them out or take cma_es")
        return greedy_soup(space)
    if name != "cma_es":
        raise AyaError(f"search: unknown search {name!r}; there are {', '.join(SEARCHES)}")
    if limit is None:
        raise AyaError("search: cma_es goes on and on; give the number of trials")
    return cma_es(space, seed=seed)


def run_search(
    search: Search,
    evaluate: Evaluate,
    *,
    file: Path,
    made_of: Any,
    limit: int | None = None,
    tell: Callable[[Trial, int], None] = lambda trial, number: None,
) -> list[Trial]:
    """Return the merges that were tried, in order, each once. All processes of a run call it.

    Args:
      search: what to try.
      evaluate: what is found of a merge; all processes get the same.
      file: JSON Lines, a line a trial, on the disk before the next is tried. What is there of the same
        `made_of` is not evaluated again.
      made_of: JSON-able: all that an evaluation follows from besides the point.
      limit: the most merges to try.
      tell: told each trial, and its number from 1.
    """
    known = by_lead(lambda: _read(file))
    trials: dict[str, Trial] = {}
    try:
        point = next(search)
        while limit is None or len(trials) < limit or _key(made_of, point) in trials:
            key = _key(made_of, point)
            if key not in trials:
                found = known.get(key)
                if found is None:
                    found = dict(evaluate(point))
                    line = {"key": key, **_shown(point), **found}
                    by_lead(lambda: _append(file, line))  # noqa: B023
                score = found["score"]
                whole = isinstance(score, int | float) and math.isfinite(score)
                trials[key] = Trial(point, float(score) if whole else -math.inf, found)
                tell(trials[key], len(trials))
            point = search.send(trials[key].score)
    except StopIteration:
        pass
    return list(trials.values())


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the best trial, the first of equal ones.

    Raises:
      AyaError: no merge has a score.
    """
    best = max(trials, key=lambda trial: trial.score)
    if best.score == -math.inf:
        raise AyaError(
            "search: no merge has a score: all of their losses or rewards are no numbers"
        )
    return best


def _shown(point: Point) -> dict[str, Any]:
    return {"weights": list(point.weights), "settings": dict(point.settings)}


def _key(made_of: Any, point: Point) -> str:
    return fingerprint([made_of, _shown(point)])


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Return what was found before, by key; a line that a kill cut short is taken off the file."""
    if not file.exists():
        return {}
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    lines = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    apart = ("key", "weights", "settings")
    return {line["key"]: {k: v for k, v in line.items() if k not in apart} for line in lines}


def _append(file: Path, line: Mapping[str, Any]) -> None:
    text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
    with open(file, "ab") as out:
        out.write(text.encode("utf-8"))
        out.flush()
        os.fsync(out.fileno())
