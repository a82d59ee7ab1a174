"""Every chart's geometry, read back from the SVG by its own axis, agrees with the figures."""

import re
from itertools import pairwise

import numpy as np
import pytest

from aya_jax.report import curves, gains, intervals, lineage, routing
from aya_jax.report.curves import Panel
from aya_jax.report.html import render
from aya_jax.report.svg import digits, tag, ticks, wrapped

STEPS = ["base", "single_teacher", "arbitrage_sft", "offline_dpo", "online_dpo_1", "online_dpo_2"]
STEPS.append("online_dpo_3")


def number(text):
    return float(text.rstrip("%").replace("−", "-").replace("+", ""))


def scale(svg, find, place, *, step):
    """Return the map from pixels or percent to values that the ticks' labels and lines tell."""
    shown = [(number(e.get(place)) - step, number(e.text)) for e in find(svg, "tick")]
    (p0, v0), (p1, v1) = shown[0], shown[-1]
    for p, v in shown:
        assert (p - p0) / (p1 - p0) == pytest.approx((v - v0) / (v1 - v0), abs=1e-3)
    return lambda p: v0 + (float(str(p).rstrip("%")) - p0) / (p1 - p0) * (v1 - v0)


def gain_charts(page, parse, find):
    return find(parse(page), "gains")


@pytest.mark.parametrize("kind", ["report", "study"])
def test_columns_are_as_high_as_their_figures(kind, request, parse, find, text):
    report = request.getfixturevalue(kind)
    seeds = report.get("overall") or {
        "0": {m: {k: f["overall"] for k, f in fs.items()} for m, fs in report["models"].items()}
    }
    charts = gain_charts(render(report), parse, find)
    assert len(charts) == 2
    for metric, chart in zip(("win_rate", "correct"), charts, strict=True):
        value_at = scale(chart, find, "y", step=4)
        drawn = [
            g
            for g in chart.iter("g")
            if g.find("rect") is not None and g.find("rect").get("data-model")
        ]
        expected = [(m, s) for m in STEPS for s in seeds if metric in seeds[s][m]]
        assert [
            (g.find("rect").get("data-model"), g.find("rect").get("data-seed")) for g in drawn
        ] == expected
        right = 0.0
        for group, (model, seed) in zip(drawn, expected, strict=True):
            figure, bar = seeds[seed][model][metric], group.find("rect")
            top, height = float(bar.get("y")), float(bar.get("height"))
            assert value_at(top) == pytest.approx(100 * figure["value"], abs=0.05)
            assert value_at(top + height) == pytest.approx(0.0, abs=0.05)
            whisker = find(group, "whisker")[0]
            ends = [value_at(whisker.get(name)) for name in ("y1", "y2")]
            assert ends == pytest.approx([100 * figure["low"], 100 * figure["high"]], abs=0.05)
            x, width = number(bar.get("x")), number(bar.get("width"))
            assert right <= x + 1e-6 and x + width <= 100
            assert number(whisker.get("x1")) == pytest.approx(x + width / 2, abs=0.01)
            right = x + width
        line = find(chart, "reference")[0]
        level = 50.0
        if metric == "correct":
            level = 100 * np.mean([s["single_teacher"]["correct"]["value"] for s in seeds.values()])
        assert (
            value_at(line.get("y1")) == value_at(line.get("y2")) == pytest.approx(level, abs=0.05)
        )
        shown = [number(e.text) for e in find(chart, "value")]
        means = [
            100 * np.mean([s[m][metric]["value"] for s in seeds.values()])
            if metric in seeds["0"][m]
            else 50.0
            for m in STEPS
        ]
        assert shown == pytest.approx(means, abs=0.051)
        changes = [number(e.text) for e in find(chart, "change")]
        assert changes == pytest.approx(np.diff(means), abs=0.051)


def test_small_shares_get_an_axis_of_their_own(report, parse, find):
    for figures in report["models"].values():
        for key in ("value", "low", "high"):
            figures["correct"]["overall"][key] /= 5
    won, correct = gain_charts(render(report), parse, find)
    assert [e.text for e in find(won, "tick")] == ["0%", "25%", "50%", "75%", "100%"]
    assert [e.text for e in find(correct, "tick")] == ["0%", "5%", "10%", "15%", "20%"]


def test_an_opponent_on_the_recipes_own_path_is_drawn_once(report, parse, find):
    report["opponent"] = "arbitrage_sft"
    report["steps_of_recipe"] = ["base", "arbitrage_sft", *report["steps_of_recipe"][2:]]
    correct = gain_charts(render(report), parse, find)[1]
    names = [e.get("data-model") for e in correct.iter("rect") if e.get("data-model")]
    assert names == [s for s in STEPS if s != "single_teacher"]
    grey = [e.get("data-model") for e in find(correct, "opponent")]
    assert grey == ["arbitrage_sft"]


def test_routing_bars_are_the_shares(report, parse, text):
    root = parse(render(report))
    panels = {e.get("data-key"): e for e in root.iter("div") if e.get("data-panel") == "router"}
    assert panels.keys() == report["routing"].keys()
    teachers = ["western", "slavic_greek", "west_south_asian", "east_asian", "generalist"]
    for router, panel in panels.items():
        heads = [text(e) for e in panel.iter("th")][1:6]
        assert heads == [t.replace("_", " ") for t in teachers]
        rows = {e.get("data-language"): e for e in panel.iter("tr") if e.get("data-language")}
        assert rows.keys() == report["languages"].keys()
        for code, row in rows.items():
            counts = report["routing"][router][code]
            bars = list(row.iter("rect"))
            won = [counts.get(teacher, 0) for teacher in teachers]
            assert [int(e.get("data-count")) for e in bars] == won
            widths = [number(e.get("width")) for e in bars]
            assert widths == pytest.approx([100 * n / sum(won) for n in won], abs=0.006)


def test_languages_of_one_teacher_stand_together():
    counts = {"a": {"x": 1, "y": 9}, "b": {"x": 6, "y": 4}, "c": {"y": 10}, "d": {"x": 9}}
    assert routing.grouped(counts, ["x", "y"]) == ["d", "b", "c", "a"]
    assert routing.teachers_of({"r": counts, "q": {"a": {"z": 1}}}, ["y"]) == ["y", "x", "z"]


def test_pairs_ranked_right_by_language(report, parse, find):
    judge = report["reward_models"]["judge"]
    report["reward_models"]["judge"] = judge = {
        "overall": dict(judge["overall"], value=0.6, low=0.5, high=0.7),
        "by_language": {c: dict(f, value=0.25, low=0.125) for c, f in judge["by_language"].items()},
    }
    del judge["by_language"]["de"]
    chart = find(parse(render(report)), "accuracy")[0]
    value_at = scale(chart, find, "x", step=0)
    for name, model in (("reward", "reward model"), ("judge", "unused judge")):
        figures = report["reward_models"][name]
        wanted = {"all": figures["overall"], **figures["by_language"]}
        found = {}
        for group in chart.iter("g"):
            point = next((e for e in group if e.get("data-model") == model), None)
            if point is not None:
                found[point.get("data-language")] = (point, group.find("line"))
                assert point.tag == ("circle" if name == "reward" else "rect")
        assert found.keys() == wanted.keys()
        for code, (point, line) in found.items():
            figure = wanted[code]
            drawn = (point.get("cx") or point.get("x"), line.get("x1"), line.get("x2"))
            expected = [100 * figure[key] for key in ("value", "low", "high")]
            assert [value_at(p) for p in drawn] == pytest.approx(expected, abs=0.01)


def test_comparisons_of_a_study(study, parse, find, text):
    root = parse(render(study))
    section = next(e for e in root.iter("section") if e.get("id") == "claims")
    cards = find(section, "claim")
    claims = list(dict.fromkeys(c["claim"] for c in study["comparisons"]))
    assert [text(e.find("h3")) for e in cards] == claims
    forests = find(section, "forest")
    assert len(forests) == len(study["comparisons"])
    kinds = set()
    for comparison, chart in zip(study["comparisons"], forests, strict=True):
        value_at = scale(chart, find, "x", step=0)
        unit = 1.0 if comparison["metric"] == "unused_reward" else 100.0
        points = [e for e in chart.iter("circle")]
        assert [e.get("data-seed") for e in points] == ["0", "1", "2"]
        zero = find(chart, "reference")[0]
        assert value_at(zero.get("x1")) == pytest.approx(0.0, abs=0.01 * unit)
        for point, line in zip(points, find(chart, "range"), strict=True):
            figure = comparison["difference"][point.get("data-seed")]
            drawn = (point.get("cx"), line.get("x1"), line.get("x2"))
            expected = [unit * figure[key] for key in ("value", "low", "high")]
            assert [value_at(p) for p in drawn] == pytest.approx(expected, abs=0.002 * unit)
            kind = "for" if figure["low"] > 0 else "against" if figure["high"] < 0 else "unsure"
            assert kind in point.get("class").split() and kind in line.get("class").split()
            kinds.add(kind)
    assert kinds >= {"for", "unsure"}
    verdicts = [text(e) for card in cards for e in find(card, "verdict")]
    assert verdicts == [c["verdict"] for c in study["comparisons"]]
    overview = find(section, "verdicts")[0]
    assert sorted(text(e) for e in find(overview, "verdict")) == sorted(verdicts)
    rows = [[text(c) for c in row] for row in cards[0].find(".//tbody")]
    first = study["comparisons"][0]
    for seed, ours, theirs, difference in rows:
        for shown, arm in ((ours, first["arms"][0]), (theirs, first["arms"][1])):
            assert shown.startswith(f"{100 * first['seeds'][seed][arm]['value']:.1f}%")
        assert number(difference.split(" ")[0]) == pytest.approx(
            100 * first["difference"][seed]["value"], abs=0.051
        )


def test_a_claim_that_is_refuted_is_not_dressed_up(study, parse, find):
    for comparison in study["comparisons"]:
        for figure in comparison["difference"].values():
            figure.update(value=-0.2, low=-0.3, high=-0.1)
        comparison["verdict"] = "shown in 0 of 3 seeds, the opposite in 3"
    root = parse(render(study))
    assert {e.get("class") for e in find(root, "verdict")} == {"verdict opposite"}
    assert {e.get("class") for e in find(root, "point") if e.get("data-seed")} == {"point against"}


def test_every_seeds_figures_are_in_a_table(study, parse, text):
    root = parse(render(study))
    panels = {e.get("data-key"): e for e in root.iter("div") if e.get("data-panel") == "seeds"}
    for metric, panel in panels.items():
        rows = {text(r.find("th")): r.findall("td") for r in panel.find(".//tbody")}
        final = rows["online DPO 3"]
        for cell, seed in zip(final, study["seeds"], strict=True):
            value = study["overall"][str(seed)]["online_dpo_3"][metric]["value"]
            unit, kept = (1.0, 0.0051) if "reward" in metric else (100.0, 0.051)
            assert number(text(cell).split(" ")[0]) == pytest.approx(unit * value, abs=kept)


def test_lineage_draws_every_ancestor_below_its_parents(report, parse, find):
    made = report["lineage"]
    made["arbitrage_sft"]["parents"][0]["weight"] = 0.4
    made["arbitrage_sft"]["parents"][1]["weight"] = 0.1
    chart = find(parse(render(report)), "lineage")[0]
    ancestors, waiting = set(), [report["final"]]
    while waiting:
        name = waiting.pop()
        ancestors.add(name)
        waiting += [p["path"] for p in made[name]["parents"] if p["path"] not in ancestors]
    nodes = {e.get("data-node"): e for e in chart.iter("rect")}
    assert nodes.keys() == ancestors
    weights = {e.get("data-edge"): float(e.text) for e in find(chart, "weight")}
    edges = {(p["path"], name): p["weight"] for name in ancestors for p in made[name]["parents"]}
    assert weights == {f"{a}>{b}": w for (a, b), w in edges.items() if w is not None}
    lines = find(chart, "edge")
    assert len(lines) == len(edges)
    for parent, child in edges:
        above, below = nodes[parent], nodes[child]
        bottom = float(above.get("y")) + float(above.get("height"))
        assert bottom < float(below.get("y"))
        middle = [number(e.get("x")) + number(e.get("width")) / 2 for e in (above, below)]
        assert any(
            [number(e.get("x1")), number(e.get("x2"))] == pytest.approx(middle, abs=0.01)
            and [float(e.get("y1")), float(e.get("y2"))] == [bottom, float(below.get("y"))]
            for e in lines
        )
    for row in {e.get("y") for e in nodes.values()}:
        spans = sorted(
            (number(e.get("x")), number(e.get("x")) + number(e.get("width")))
            for e in nodes.values()
            if e.get("y") == row
        )
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_a_model_from_outside_is_where_the_lineage_begins():
    made = {"x": {"method": "sft", "parents": [{"path": "theirs", "weight": None}]}}
    assert lineage.ancestry(made, "x") == [["theirs"], ["x"]]
    assert "given" in lineage.graph(made, "x")


def test_curves_are_the_history(report, parse, text):
    root = parse(render(report))
    section = next(e for e in root.iter("section") if e.get("id") == "curves")
    figure = next(
        e for e in section.iter("figure") if text(e.find("figcaption")) == "teachers loss"
    )
    svg = figure.find("svg")
    labels = [e for e in svg.iter("text") if "tick" in e.get("class")]
    up = [(float(e.get("y")) - 4, float(e.text)) for e in labels if float(e.get("x")) < 40]
    (y0, v0), (y1, v1) = up[0], up[-1]
    (grid,) = {(e.get("x1"), e.get("x2")) for e in svg.iter("line") if e.get("class") == "grid"}
    left, right = map(float, grid)
    for line in svg.iter("polyline"):
        history = report["history"][f"teacher.{line.get('data-line')}"]["loss"]
        points = [tuple(map(float, p.split(","))) for p in line.get("points").split(" ")]
        steps = [(x - left) / (right - left) * 200 for x, _ in points]
        values = [v0 + (y - y0) / (y1 - y0) * (v1 - v0) for _, y in points]
        assert steps == pytest.approx([s for s, _ in history], abs=0.1)
        assert values == pytest.approx([v for _, v in history], abs=0.01)
    assert len(list(svg.iter("polyline"))) == 5
    ends = sorted(float(e.get("y")) for e in svg.iter("text") if "name" in e.get("class").split())
    assert len(ends) == 5 and min(np.diff(ends)) >= 12


def test_preference_trainings_follow_one_another_on_one_axis(report):
    groups = curves.panels(report["history"], report["steps_of_recipe"])
    (loss, *_) = groups["Preference training of the clusters"]
    assert list(loss.breaks) == [0, 20, 40, 60]
    assert loss.lines["western"] == [
        [(offset + 10, 0.69), (offset + 20, 0.6)] for offset in (0, 20, 40, 60)
    ]
    drawn = {(p.title, p.metric, name) for g in groups.values() for p in g for name in p.lines}
    assert len(drawn) == 1 + 5 + 6 + 3 * 4 + 3 * 4


def test_curves_of_a_run_that_diverged():
    history = {"base": {"loss": [[1, 2.0], [2, float("nan")], [3, float("inf")], [4, 2.0]]}}
    ((panel,),) = curves.panels(history, []).values()
    assert panel.lines == {"base": [[(1, 2.0), (4, 2.0)]]}
    assert "nan" not in curves.draw(panel)
    assert curves.panels({"base": {"loss": [[1, float("nan")]]}}, []) == {}


def test_many_lines_keep_their_labels_apart_and_inside():
    panel = Panel("many", "loss", {f"line {i}": [[(1.0, 1.0), (9.0, 1.0)]] for i in range(9)}, {})
    ends = [
        float(y)
        for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)" class="name', curves.draw(panel))
    ]
    assert len(ends) == 9 and min(np.diff(sorted(ends))) >= 12
    assert min(ends) > 0 and max(ends) < curves.HEIGHT


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.31, 0.02), (0.693, 0.6931), (5, 1234), (2, 2), (-1e-9, 1e-9)]
)
def test_ticks_are_round_and_cover_the_range(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low + 1e-9 and marks[-1] >= high - 1e-9 and 2 <= len(marks) <= 7
    assert np.ptp(np.diff(marks)) < 1e-9
    step = marks[1] - marks[0]
    assert len({f"{m:.{max(digits(marks), 0)}f}" for m in marks}) == len(marks) or step < 1e-5


def test_elements_escape_their_texts_and_attributes():
    assert str(tag("text", "<a & b>", x=1.50, data_name='"q"', y=None)) == (
        '<text x="1.5" data-name="&#34;q&#34;">&lt;a &amp; b&gt;</text>'
    )
    assert wrapped("online DPO 3", 9) == ["online", "DPO 3"]
    assert gains.Axis(0.5).y(0.5) == gains.TOP
    low, high = intervals.span_of([{"difference": {"0": {"low": 0.1, "high": 0.3}}}])
    assert low == 0 and high >= 0.3
