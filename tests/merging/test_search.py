"""Which merges a search tries, and that one which was killed goes on to the same end."""

import json
import math
import os
import signal
import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from aya_jax.errors import AyaError
from aya_jax.merging.search import (
    GRID,
    Point,
    Space,
    best_of,
    cma_es,
    greedy_soup,
    grid_points,
    listed,
    run_search,
    search_of,
)


def asked(search, score):
    """All that a search asks for, where `score` is a function of the weights."""
    found = []
    try:
        point = next(search)
        while True:
            found.append(point)
            point = search.send(score(point))
    except StopIteration:
        return found


def test_the_grid_of_two_models_is_that_of_the_paper():
    weights = [point.weights for point in grid_points(Space(2))]
    assert weights[0] == (0.5, 0.5)
    assert sorted(weights) == [(0.0, 1.0), (0.3, 0.7), (0.5, 0.5), (0.7, 0.3), (1.0, 0.0)]


def test_weights_that_must_sum_to_one_do():
    points = grid_points(Space(4))
    assert points[0].weights == (0.25,) * 4
    for point in points:
        assert math.fsum(point.weights) == pytest.approx(1)
    on_grid = [c for c in product(GRID, repeat=4) if abs(sum(c) - 1) < 1e-9]
    assert {p.weights for p in points[1:]} == set(on_grid)


def test_where_only_proportions_count_each_is_tried_once():
    points = grid_points(Space(3, sums_to_one=False, normalize=True))
    directions = {
        tuple(np.round(np.array(c) / sum(c), 9)) for c in product(GRID, repeat=3) if any(c)
    }
    assert {tuple(np.round(p.weights, 9)) for p in points} == directions
    assert len(points) == len(directions)


def test_settings_multiply_the_grid():
    space = Space(2, sums_to_one=False, vary={"density": (0.2, 0.8), "scale": (1.0, 1.5)})
    points = grid_points(space)
    assert len(points) == 4 * (5**2 - 1)
    assert points[0] == Point((0.5, 0.5), {"density": 0.2, "scale": 1.0})


def test_a_greedy_soup_takes_in_what_does_not_harm():
    # Model 2 is best; with 0 as good as without; 1 harms.
    score = {(2,): 0.8, (0,): 0.7, (1,): 0.6, (0, 2): 0.8, (0, 1, 2): 0.5}
    points = asked(
        greedy_soup(Space(3)),
        lambda p: score[tuple(i for i, w in enumerate(p.weights) if w)],
    )
    assert [p.weights for p in points] == [
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (0.5, 0, 0.5),
        (1 / 3, 1 / 3, 1 / 3),
    ]


def test_cma_es_nears_the_best_weights_and_setting():
    best = np.array([0.7, 0.2, 0.1])

    def score(point):
        return -sum((point.weights - best) ** 2) - (point.settings["scale"] - 1.4) ** 2

    search = cma_es(Space(3, vary={"scale": (0.5, 2.0)}), seed=0)
    point, points = next(search), []
    for _ in range(160):
        points.append(point)
        assert sum(point.weights) == pytest.approx(1) and min(point.weights) >= 0
        assert 0.5 <= point.settings["scale"] <= 2
        point = search.send(score(point))
    assert points[0] == Point((1 / 3, 1 / 3, 1 / 3), {"scale": 1.25})
    found = max(points, key=score)
    np.testing.assert_allclose(found.weights, best, atol=0.05)
    assert found.settings["scale"] == pytest.approx(1.4, abs=0.05)


def test_a_search_with_another_seed_tries_other_merges():
    def second(seed):
        search = cma_es(Space(2), seed=seed)
        next(search)
        return search.send(0.0)

    assert second(1) == second(1)
    assert second(1) != second(2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("grid", Space(1)), "two or more"),
        (("grid", Space(3, normalize=True), 20), "more than the 20 trials"),
        (("cma_es", Space(2)), "number of trials"),
        (("greedy", Space(2, vary={"density": (0.1, 0.9)})), "no settings"),
        (("gird", Space(2)), "unknown search 'gird'"),
    ],
)
def test_what_cannot_be_searched_is_told(arguments, told):
    name, space, *limit = arguments
    with pytest.raises(AyaError, match=told):
        search_of(name, space, limit=limit[0] if limit else None)


def test_each_merge_is_evaluated_once_and_another_evaluation_again(tmp_path):
    calls = []

    def evaluate(point):
        calls.append(point)
        return {"score": point.weights[0], "extra": [1.5]}

    points = [Point((0.3, 0.7)), Point((1.0, 0.0)), Point((0.3, 0.7))]
    arguments = {"file": tmp_path / "trials.jsonl", "made_of": "this"}
    trials = run_search(listed(points), evaluate, **arguments)
    assert [t.score for t in trials] == [0.3, 1.0] and len(calls) == 2
    assert best_of(trials).point == points[1]
    assert run_search(listed(points), evaluate, **arguments) == trials and len(calls) == 2
    run_search(listed(points), evaluate, file=arguments["file"], made_of="that")
    assert len(calls) == 4


def test_no_number_is_the_worst_score(tmp_path):
    values = {0.0: None, 1.0: -5.0}
    file = tmp_path / "trials.jsonl"
    points = [Point((0.0, 1.0)), Point((1.0, 0.0))]
    trials = run_search(
        listed(points), lambda p: {"score": values[p.weights[0]]}, file=file, made_of=0
    )
    assert best_of(trials).point == points[1]
    with pytest.raises(AyaError, match="no merge has a score"):
        best_of(trials[:1])


# What a search is in a process of its own: told how often it may evaluate before it is killed outright.
SEARCHER = """
import os, signal, sys
from pathlib import Path
from aya_jax.merging.search import Space, run_search, search_of

left = int(sys.argv[2])

def evaluate(point):
    global left
    left -= 1
    if left < 0:
        with open(sys.argv[1], "ab") as file:
            file.write(b'{"key": "cut sho')
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"score": -sum((w - 0.1 * i) ** 2 for i, w in enumerate(point.weights))}

search = search_of("cma_es", Space(3), limit=20, seed=3)
run_search(search, evaluate, file=Path(sys.argv[1]), made_of="x", limit=20)
"""


def test_a_killed_search_ends_in_the_same_trials(tmp_path):
    def run(file, evaluations):
        return subprocess.run(
            [sys.executable, "-c", SEARCHER, file, str(evaluations)],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            check=False,
        ).returncode

    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert run(whole, 20) == 0
    assert run(broken, 13) == -signal.SIGKILL
    # Seven are left: were one of the thirteen evaluated again, it would be killed again.
    assert run(broken, 7) == 0
    assert broken.read_bytes() == whole.read_bytes()
    assert len([json.loads(line) for line in whole.read_text().splitlines()]) == 20
