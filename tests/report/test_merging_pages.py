"""The pages of a search for weights and of a comparison: well formed, escaped, complete, from nothing elsewhere."""

import numpy as np
import pytest

from aya_jax.evaluation.bootstrap import interval, summarise
from aya_jax.report.compare_page import render_comparison
from aya_jax.report.html import render
from aya_jax.report.search_page import SHOWN, render_search

NASTY = "<b>one</b>"
CODES = ["de", "en", "und"] * 4


def trial(weights, value, *, best=False, density=0.5):
    figure = value and summarise(list(value + np.linspace(-0.1, 0.1, 12)), CODES)
    return {"weights": weights, "settings": {"density": density}, "figure": figure, "best": best}


@pytest.fixture(params=["loss", "reward", "wins", "correct"])
def search(request):
    return {
        "measure": request.param,
        "records": 12,
        "method": "ties",
        "search": "cma_es",
        "models": [NASTY, "two"],
        "base": "start",
        "languages": {"de": "German", "en": "English"},
        "trials": [
            trial([0.5, 0.5], 0.4),
            trial([0.3, 0.7], 0.6, best=True),
            trial([1.0, 0.0], None),
        ],
        "differences": {"equal weights": summarise(list(np.linspace(0, 0.2, 12)), CODES)},
        "versions": {"jax": "0.10.2"},
    }


def alone(root):
    """Nothing is read from elsewhere."""
    return not [
        e.tag for e in root.iter() if e.tag in ("link", "img", "iframe", "script", "object")
    ]


def rows_of(root, label):
    (region,) = [e for e in root.iter() if e.get("aria-label") == label]
    return [["".join(cell.itertext()) for cell in row] for row in region.iter("tr")]


def dots_of(root, label):
    (chart,) = [e for e in root.iter() if (e.get("aria-label") or "").startswith(label)]
    return [e for e in chart.iter() if "point" in (e.get("class") or "").split()]


def test_a_searchs_page_has_every_trial(search, parse):
    page = render_search(search)
    root = parse(page)
    assert alone(root) and "://" not in page
    assert NASTY not in page and "&lt;b&gt;one" in page
    rows = rows_of(root, "All trials")
    assert len(rows) == 4
    assert rows[0][:4] == ["trial", NASTY, "two", "density"]
    assert rows[2][1:4] == ["0.3", "0.7", "0.5"]
    assert "no number" in rows[3]
    if search["measure"] in ("wins", "correct"):
        assert rows[2][4] == "60.0%"
    assert "0.3 of &lt;b&gt;one&lt;/b&gt;, 0.7 of two, density 0.5" in page


def test_the_chart_of_a_search_is_in_the_order_of_the_scores(search, parse):
    search["trials"] += [trial([i / 100, 1 - i / 100], i / 200) for i in range(1, 80)]
    root = parse(render_search(search))
    names = {"loss": "log-likelihood", "wins": "win rate"}
    dots = dots_of(root, names.get(search["measure"], search["measure"]))
    assert len(dots) == SHOWN
    assert "strong" in dots[0].get("class")
    values = [float(dot.get("cx").rstrip("%")) for dot in dots]
    assert values == sorted(values, reverse=True)
    # By language: all, German, English, none given.
    assert len(dots_of(root, "How far the best merge is above equal weights")) == 4


@pytest.fixture
def comparison():
    group = {
        "entries": 1000,
        "distance": [[0.0, 2.0], [2.0, 0.0]],
        "norm": [1.5, 1.25],
        "cosine": [[1.0, 0.25], [0.25, 1.0]],
        "conflicts": 0.375,
        "opposite": [[0.0, 0.4], [0.4, 0.0]],
    }
    still = {**group, "cosine": [[None, None], [None, 1.0]]}
    values, codes = np.linspace(1, 2, 12), np.array(CODES)
    return {
        "models": [NASTY, "two"],
        "base": "start",
        "all": group,
        "layers": {"outside of the layers": group, "layer 0": group, "layer 1": still},
        "modules": {"embedding": group, "q": still},
        "curves": [
            {
                "models": [NASTY, "two"],
                "points": [{"t": t, **interval(values + t, codes)} for t in (0.0, 0.5, 1.0)],
                "barrier": {"t": 0.5, "value": 0.125, "low": 0.1, "high": 0.15, "n": 12},
                "half": {"t": 0.5, "value": 0.125, "low": 0.1, "high": 0.15, "n": 12},
            },
            {"models": ["two", NASTY], "points": [], "barrier": None, "half": None},
        ],
        "records": 12,
        "versions": {"jax": "0.10.2"},
    }


def test_a_comparisons_page_has_its_figures(comparison, parse):
    page = render_comparison(comparison)
    root = parse(page)
    assert alone(root) and "://" not in page
    assert NASTY not in page and "&lt;b&gt;one" in page
    cosines = rows_of(root, "Cosine of task vectors")
    assert cosines[0] == ["", "1", "2"]
    assert cosines[1:] == [[f"1 {NASTY}", "1.000", "0.250"], ["2 two", "0.250", "1.000"]]
    assert rows_of(root, "By layer")[3][0] == "layer 1"
    assert rows_of(root, "By module")[2][3:] == ["-", "37.5%"]
    barriers = rows_of(root, "Loss barriers")
    assert barriers[1][1:] == [
        "0.1250 [0.1000, 0.1500] at t = 0.5",
        "+0.1250 [+0.1000, +0.1500]",
    ]
    assert barriers[2][1:] == ["no number", "-"]
    lines = [e for e in root.iter() if e.get("data-line")]
    # Cosines and opposite signs of the pair, all models' conflicts, and one loss curve.
    assert len(lines) == 4


def test_a_comparison_without_base_or_records(comparison, parse):
    bare = {key: comparison["all"][key] for key in ("entries", "distance")}
    comparison |= {"base": None, "all": bare, "layers": {"layer 0": bare}, "modules": {"q": bare}}
    comparison |= {"curves": [], "records": 0}
    root = parse(render_comparison(comparison))
    ids = {e.get("id") for e in root.iter()}
    assert "tables" in ids and not {"curves", "layers"} & ids


def test_a_studys_page_has_all_seeds_by_language(report, parse):
    figure = summarise([0.0, 1.0, 1.0, 1.0], ["de", "de", "en", "en"])
    models = {name: {"correct": figure} for name in (*report["models"], "unmerged")}
    root = parse(render({**report, "pooled": models}))
    rows = rows_of(root, "correct over all seeds, by language")
    assert rows[0][-1] == "unmerged" and len(rows[0]) == len(models) + 1
    by_name = {row[0]: row[1] for row in rows}
    assert by_name["All languages"].startswith("75.0% [")
    assert by_name["German"].startswith("50.0% [")
    assert by_name["English"] == "100.0% [100.0, 100.0]"


def test_a_runs_page_has_the_models_before_each_merge(report, comparison, parse):
    found = {key: comparison[key] for key in ("models", "all", "layers", "modules")}
    root = parse(render({**report, "diagnosis": {"arbitrage_sft": found, "offline_dpo": found}}))
    rows = rows_of(root, "Models of the clusters")
    assert rows[0] == ["model", "entries", "mean distance", "mean cosine", "sign conflicts"]
    assert rows[1] == ["arbitrage SFT", "1,000", "2.000", "0.250", "37.5%"]
    assert [row[0] for row in rows[2:]] == ["offline DPO"]
    assert not [e for e in parse(render(report)).iter() if e.get("id") == "diagnosis"]
