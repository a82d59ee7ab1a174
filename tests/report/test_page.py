"""The whole page: self-contained, well formed, escaped, complete, and the same every time."""

import json
import re
from pathlib import Path

import pytest

from aya_jax.recipe.summary import write_report
from aya_jax.report import html
from aya_jax.report.html import render

NASTY = '<script>alert("x")</script> & <b>bold</b>'
SECTIONS = {
    "languages": "Language by language",
    "routing": "Which teacher",
    "samples": "Answers side by side",
    "lineage": "How the final model was made",
    "rewards": "How far to trust",
    "curves": "Training curves",
    "times": "Where the time went",
    "settings": "Settings and versions",
}
TEMPLATES = Path(html.__file__).parent / "templates"


def by_id(root, name):
    return next((e for e in root.iter() if e.get("id") == name), None)


@pytest.mark.parametrize("kind", ["report", "study"])
def test_page_is_well_formed_and_needs_nothing_else(kind, request, parse):
    page = render(request.getfixturevalue(kind))
    root = parse(page)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(set(ids)) == len(ids)
    for element in root.iter():
        assert element.tag not in ("link", "img", "iframe", "object", "image", "base")
        assert not {"src", "srcset", "action", "data", "poster"} & element.attrib.keys()
        for name in ("href", "for"):
            if name in element.attrib:
                assert element.get(name).removeprefix("#") in ids
        assert not [name for name in element.attrib if name.startswith("on")]
    assert page.startswith("<!DOCTYPE html>")
    assert "://" not in page and "url(" not in page and "@import" not in page
    scripts = "".join("".join(e.itertext()) for e in root.iter("script"))
    for word in ("fetch", "XMLHttpRequest", "import ", "WebSocket", "eval"):
        assert word not in scripts


def test_same_report_gives_same_bytes_also_after_a_file_sorted_its_keys(report, study):
    for each in (report, study):
        page = render(each)
        assert render(each) == page
        assert render(json.loads(json.dumps(each, sort_keys=True))) == page


def test_written_beside_report_json(report, tmp_path):
    place = write_report(tmp_path, report)
    assert place.read_text("utf-8") == render(json.loads((tmp_path / "report.json").read_text()))


def test_texts_are_escaped_and_shown_as_they_are(report, parse, find, text):
    report["recipe"] = f"recipe {NASTY}"
    report["settings"] = f"settings {NASTY}"
    sample = next(s for s in report["samples"] if s["language"] == "en")
    sample["kind"] = f"kind {NASTY}"
    sample["answers"] = [f"answer {NASTY}"]
    sample["completions"]["base"]["text"] = f"completion {NASTY}"
    report["routing"]["reward"]["en"] = {f"teacher {NASTY}": 5}
    report["history"]["teacher.x" + NASTY] = {"loss": [[1, 2.0], [2, 1.0]]}
    report["languages"]["en"]["name"] = f"name {NASTY}"
    root = parse(render(report))
    assert len(list(root.iter("script"))) == 1 and not [
        b for b in root.iter("b") if b.text == "bold"
    ]
    shown = text(root)
    for word in ("recipe", "settings", "answer", "completion", "teacher", "name"):
        assert f"{word} {NASTY}" in shown
    assert f"kind {NASTY}".replace("_", " ") in shown
    assert sample["prompt"] in [e.text for e in find(root, "prompt")]


def test_bytes_of_a_young_model_do_not_break_the_page(report, parse, find):
    answer = report["samples"][0]["completions"]["base"]
    answer["text"] = "a\x00b\x1b[31m\x7f\x85\ufffe\ud800 c\nd"
    page = render(report)
    page.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]", page)
    shown = [e.text for e in find(parse(page), "text")]
    assert "a\u2400b\u241b[31m\ufffd\ufffd\ufffd? c\nd" in shown


def test_an_empty_answer_is_told(report, parse, find, text):
    report["samples"][0]["completions"]["base"]["text"] = ""
    assert [text(e) for e in find(parse(render(report)), "empty")] == ["no text"]


def test_right_to_left(report, parse):
    root = parse(render(report))
    panels = {e.get("data-key"): e for e in root.iter("div") if e.get("data-panel") == "language"}
    assert panels.keys() == report["languages"].keys()
    for code, panel in panels.items():
        expected = "rtl" if code in ("ar", "fa", "he") else "ltr"
        prompts = [e for e in panel.iter("p") if "prompt" in e.get("class", "")]
        assert [(e.get("dir"), e.get("lang")) for e in prompts] == [(expected, code)] * 2
        native, french = (e for e in panel.iter("article"))
        for card, language, direction in ((native, code, expected), (french, "fr", "ltr")):
            texts = [e for e in card.iter("div") if e.get("class") == "text"]
            assert len(texts) == 1 + len(report["models"])
            assert {(e.get("dir"), e.get("lang")) for e in texts} == {(direction, language)}


def test_samples_tell_right_from_wrong_in_words(report, parse, find, text):
    sample = report["samples"][0]
    card = next(parse(render(report)).iter("article"))
    assert text(find(card, "reference")[0]).endswith("{} / {}".format(*sample["answers"]))
    rows = {
        text(find(e, "who")[0]): e
        for e in find(card, "answer")
        if "reference" not in e.get("class")
    }
    assert len(rows) == len(report["models"])
    steps = report["steps_of_recipe"]
    assert [text(find(e, "text")[0]) for e in list(rows.values())[: len(steps)]] == [
        sample["completions"][model]["text"] for model in steps
    ]
    for row in rows.values():
        model = text(find(row, "text")[0]).split(" ")[0]
        made = sample["completions"][model]
        mark = find(row, "marks")[0]
        assert ("✓ correct" in text(mark)) == made["correct"]
        assert ("✗ wrong" in text(mark)) == (not made["correct"])
        assert f"{made['unused_reward']:.2f}" in text(mark)


@pytest.mark.parametrize(
    ("gone", "section"),
    [
        ("routing", "routing"),
        ("samples", "samples"),
        ("lineage", "lineage"),
        ("reward_models", "rewards"),
        ("history", "curves"),
        ("stages", "times"),
    ],
)
def test_what_is_missing_is_left_out(gone, section, report, parse, text):
    whole = parse(render(report))
    assert {e.get("id") for e in whole.iter("section")} == {"gains", "models", *SECTIONS}
    for name, heading in SECTIONS.items():
        assert heading in text(by_id(whole, name))
    for less in ({}, {gone: type(report[gone])()}):
        rest = {name: value for name, value in report.items() if name != gone}
        root = parse(render({**rest, **less}))
        assert by_id(root, section) is None
        assert f"#{section}" not in [e.get("href") for e in root.iter("a")]
        assert {e.get("id") for e in root.iter("section")} == {"gains", "models", *SECTIONS} - {
            section
        }


def test_settings_and_versions_may_both_be_missing(report, parse):
    del report["settings"], report["versions"]
    assert by_id(parse(render(report)), "settings") is None


def test_the_least_a_report_can_be(report, parse, text):
    least = {name: report[name] for name in ("models", "final", "opponent")}
    root = parse(render(least))
    assert {e.get("id") for e in root.iter("section")} == {"gains", "languages", "models"}


def test_data_of_ones_own(report, parse, text):
    """No references, so nothing is correct; a variant, an unnamed language, messages."""
    for figures in report["models"].values():
        figures.pop("correct"), figures.pop("checker_win_rate", None)
        for metric in figures.values():
            part = metric["by_language"]
            part["zh-Hant"], part["und"] = part.pop("zh"), part.pop("he")
            del part["ar"]
    del report["models"]["base"]["unused_reward"]["by_language"]["de"]
    report["samples"] = [
        {
            "language": "zh-Hant",
            "prompt": [{"role": "user", "content": "你好"}],
            "completions": {
                "base": {"text": "你好！", "right_language": True, "reward": 0.1},
                "online_dpo_3": {"text": "hello", "right_language": False, "reward": 0.1},
            },
        },
        {"prompt": "?", "completions": {"base": {"text": "!", "reward": 0.0}}},
    ]
    root = parse(render(report))
    told = text(root)
    assert "correct answers" not in told.lower() and "✓ correct" not in told
    assert "on correct" not in text(next(root.iter("h1")))
    assert "Chinese (zh-Hant)" in told and "no language given" in told
    assert "user: 你好" in told and "✓ right language" in told and "✗ wrong language" in told
    head = [
        text(e) for e in next(e for e in root.iter("table") if e.get("class") == "heat").iter("th")
    ]
    assert "zh-Hant" in head and "ar" not in head
    assert [e.get("dir") for e in root.iter("p") if e.get("class") == "prompt"] == ["ltr", "auto"]


def test_every_figure_is_in_the_table_of_all_models(report, parse, text):
    root = parse(render(report))
    table = next(e for e in by_id(root, "models").iter("table"))
    columns = [text(e) for e in table.find("thead").iter("th")][1:]
    names = {"win rate": "win_rate", "checker win rate": "checker_win_rate", "correct": "correct"}
    names |= {"right language": "right_language", "unused reward": "unused_reward"}
    names |= {"training reward": "reward"}
    assert columns == list(names)
    rows = {e.get("data-model"): e for e in table.iter("tr") if e.get("data-model")}
    assert list(rows) == list(report["models"])
    for model, row in rows.items():
        for column, cell in zip(columns, row.findall("td"), strict=True):
            figure = report["models"][model].get(names[column])
            if figure is None:
                assert model == report["opponent"] and text(cell) == "–"
                continue
            overall = figure["overall"]
            if "reward" in column:
                parts = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**overall)
                parts = parts.replace("-0.00", "0.00").replace("-", "−")
            else:
                shown = {k: 100 * v for k, v in overall.items()}
                parts = "{value:.1f}% [{low:.1f}, {high:.1f}]".format(**shown)
            assert text(cell) == parts
            marked = [e for e in cell.iter("span") if e.get("class") == "sure"]
            excluded = overall["low"] > 0.5 or overall["high"] < 0.5
            assert bool(marked) == ("win rate" in column and excluded)


def test_every_language_is_in_the_heat_maps(report, parse, text):
    root = parse(render(report))
    panels = {e.get("data-key"): e for e in root.iter("div") if e.get("data-panel") == "map"}
    assert {"win_rate", "correct", "right_language"} <= panels.keys()
    chosen = [e.get("value") for e in root.iter("input") if e.get("name") == "map"]
    assert chosen == list(panels)
    for metric, panel in panels.items():
        codes = [text(e) for e in panel.iter("th")][2 : 2 + len(report["languages"])]
        assert codes == sorted(report["languages"])
        rows = {
            e.get("data-model"): e.findall("td") for e in panel.iter("tr") if e.get("data-model")
        }
        assert list(rows) == [m for m, f in report["models"].items() if metric in f]
        for model, cells in rows.items():
            figures = report["models"][model][metric]
            wanted = [figures["overall"], *(figures["by_language"][c] for c in codes)]
            for cell, figure in zip(cells, wanted, strict=True):
                assert f"n = {figure['n']}" in cell.get("title")
                if "reward" in metric:
                    continue
                assert text(cell) == f"{100 * figure['value']:.0f}"
                level = int(cell.get("class").split()[0][1:])
                assert abs(level - 10 * figure["value"]) <= 0.5
                assert f"{100 * figure['value']:.1f}%" in cell.get("title")


def test_times_add_up(report, parse, text):
    section = by_id(parse(render(report)), "times")
    phases, stages = section.iter("table")
    minutes, seconds = divmod(round(sum(stage["seconds"] for stage in report["stages"])), 60)
    assert f"{minutes} min {seconds:02d} s" in text(phases.find("tfoot"))
    shares = [
        sum(float(r.get("width")[:-1]) for r in table.iter("rect")) for table in (phases, stages)
    ]
    assert shares == pytest.approx([100, 100], abs=0.1)
    assert len(list(stages.find("tbody").iter("tr"))) == len(report["stages"])


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one, other):
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_texts_can_be_read_in_light_and_dark():
    """WCAG 2.1, success criteria 1.4.3 (text, 4.5) and 1.4.11 (graphics, 3)."""
    pair = r"light-dark\((#\w{6}), (#\w{6})\)"
    heat = re.findall(rf"background: {pair}; color: {pair}", (TEMPLATES / "heat.css").read_text())
    assert len(heat) == 22
    for light, dark, on_light, on_dark in heat:
        assert _contrast(light, on_light) >= 4.5
        assert _contrast(dark, on_dark) >= 4.5
    style = (TEMPLATES / "style.css").read_text()
    colours = {n: pairs for n, *pairs in re.findall(rf"--([\w-]+): {pair}", style)}
    for theme in (0, 1):
        of = {name: pairs[theme] for name, pairs in colours.items()}
        for paper in ("page", "card"):
            for ink in ("ink", "soft", "accent", *(f"s{i}" for i in range(8))):
                assert _contrast(of[paper], of[ink]) >= 4.5, (ink, paper, theme)
        assert _contrast(of["good"], of["good-bg"]) >= 4.5
        assert _contrast(of["bad"], of["bad-bg"]) >= 4.5
        for mark in ("bar", "strong-rule"):
            assert _contrast(of["card"], of[mark]) >= 3
