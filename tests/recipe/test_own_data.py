"""The recipe over data of one's own: JSONL files cut from real multilingual data, and a TFDS name."""

import gzip
import json
from collections import defaultdict
from pathlib import Path

import pytest

from aya_jax.data import atlas
from aya_jax.data.atlas.tfds_builder import AtlasConfig, prepare
from aya_jax.data.records import write_records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
LANGUAGES = [
    "ar",
    "cs",
    "de",
    "en",
    "es",
    "fr",
    "he",
    "id",
    "it",
    "ja",
    "ko",
    "nl",
    "pl",
    "tr",
    "zh",
]
TEACHERS = ("gpt-4", "llama-3.3-70b-instruct", "qwen2.5-14b-instruct")
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the multilingual data pack is not in ../shared/data"
)


def rows_of(name):
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [row for row in map(json.loads, file) if row["language"] in LANGUAGES]


def size(row, *fields):
    """Return the bytes of a record's texts: never fewer than their tokens."""
    return sum(len(row[field].encode()) for field in fields)


def some_of_each(rows, count):
    """Return the first `count` rows of each language."""
    chosen = defaultdict(list)
    for row in rows:
        if len(chosen[row["language"]]) < count:
            chosen[row["language"]].append(row)
    return [row for part in chosen.values() for row in part]


def has(row, fields):
    """Whether a record has all these fields as they are here."""
    return {name: row.get(name) for name in fields} == fields


class Files:
    """Files of one's own, as a user would have them, and the bindings that name them."""

    def __init__(self, folder):
        answers = [row for row in rows_of("teacher_pool") if row["model"] in TEACHERS]
        asked = defaultdict(dict)
        for row in answers:
            asked[row["language"], row["prompt"]][row["model"]] = row
        # Prompts to which at least one teacher gave a short answer, the shortest first. Longer answers
        # stay in the files as they are.
        short = sorted(
            (min(size(row, "prompt", "completion") for row in given.values()), key)
            for key, given in asked.items()
            if size({"prompt": key[1]}, "prompt") < 200
        )
        prompts = [next(iter(asked[key].values())) for length, key in short if length < 450]
        self.prompts = [
            {
                "id": row["id"],
                "language": row["language"],
                "prompt": row["prompt"],
                "question_id": row["question_id"],
                "mine": {"note": [1, None, "é"]},
            }
            for row in some_of_each(prompts, 2)
        ]
        self.recorded = {
            (row["language"], row["prompt"], row["model"]): row["completion"] for row in answers
        }
        held_out = [row for row in rows_of("m_arena_hard_questions") if row["split"] == "eval"]
        self.held_out = some_of_each([r for r in held_out if size(r, "prompt") < 150], 2)
        lessons = [r for r in rows_of("instruct") if size(r, "prompt", "completion") < 350]
        pairs = [
            {**row, "chosen": row["completion"], "rejected": other["completion"]}
            for row, other in zip(lessons[20:], lessons, strict=False)
            if size(row, "prompt", "completion") < 250 and size(other, "completion") < 150
        ]
        files = {
            "prompts": self.prompts,
            "held_out": self.held_out,
            "lessons": some_of_each(lessons, 3),
            # Pairs, and in some languages good completions alone.
            "preferences": [
                {k: v for k, v in row.items() if k not in ("chosen", "rejected")}
                if row["language"] in ("de", "ja")
                else {k: v for k, v in row.items() if k != "completion"}
                for row in some_of_each(pairs, 6)
            ],
            "text": [{"language": r["language"], "text": r["text"]} for r in rows_of("udhr")],
            **{name: [r for r in answers if r["model"] == name] for name in TEACHERS},
        }
        place = {
            name: write_records(folder / f"{name}.jsonl", rows) for name, rows in files.items()
        }
        self.bindings = [
            f"source.text.source = '{place['text']}'",
            f"teachers/ours/source.records.source = '{place['lessons']}'",
            f"expanse.teacher_files = { {name: str(place[name]) for name in TEACHERS} }",
            f"reward_prompts/source.records.source = '{place['preferences']}'",
            f"prompts/source.records.source = '{place['prompts']}'",
            f"evaluation_prompts/source.records.source = '{place['held_out']}'",
        ]


@pytest.fixture(scope="module")
def finished(aya, run_of, tmp_path_factory):
    """The files and the run over them."""
    folder = tmp_path_factory.mktemp("own")
    files = Files(folder)
    run = run_of(folder / "run")
    run.told = aya.succeed(run.path, *files.bindings, recipe="tests/recipe/own_data.gin")
    return files, run


@needs_data
def test_all_stages_over_files_in_fifteen_languages(finished):
    files, run = finished
    assert {row["language"] for row in files.prompts} == set(LANGUAGES)
    assert sorted(p.name for p in (run.path / "stages").iterdir()) == sorted(run.stages)
    report = run.report()
    assert set(report["models"]) == {
        *("base", "single_teacher", "random_routing"),
        *("arbitrage_sft", "offline_dpo", "online_dpo_1"),
    }
    for figures in report["models"].values():
        # There is no reference answer, so nothing is called correct.
        assert set(figures) == {"right_language", "reward", "unused_reward", "win_rate"}
        for figure in figures.values():
            assert set(figure["by_language"]) == set(LANGUAGES)
            assert figure["overall"]["n"] == len(files.held_out)
    for name in ("reward", "judge"):
        assert report["reward_models"][name]["overall"]["n"] > 0
    page = (run.path / "report.html").read_text("utf-8")
    assert all(name in page for name in (*TEACHERS, "ours"))


@needs_data
def test_recorded_answers_are_candidates_as_they_are(finished):
    files, run = finished
    candidates = run.records("candidates")
    assert [row["prompt"] for row in candidates] == [row["prompt"] for row in files.prompts]
    found = defaultdict(int)
    for row in candidates:
        names = [each["model"] for each in row["candidates"]]
        assert len(set(names)) == len(names) and set(names) & set(TEACHERS)
        for each in row["candidates"]:
            found[each["model"]] += 1
            if each["model"] != "ours":
                key = (row["language"], row["prompt"], each["model"])
                assert each["completion"] == files.recorded[key]
    assert set(found) == {*TEACHERS, "ours"}
    # What does not fit the context is left out and told, not cut.
    asked = {(row["language"], row["prompt"]) for row in files.prompts}
    recorded = sum(key[:2] in asked for key in files.recorded)
    figures = next(s for s in run.report()["stages"] if s["name"] == "candidates")["figures"]
    assert figures["too_long"] == recorded - sum(found[name] for name in TEACHERS) > 0
    routed = {
        router: {name for counts in by_language.values() for name in counts}
        for router, by_language in run.report()["routing"].items()
    }
    assert routed["random"] >= set(TEACHERS)
    assert routed["reward"] & set(TEACHERS)


@needs_data
def test_fields_of_ones_own_are_carried_through(finished):
    files, run = finished
    own = {row["prompt"]: row for row in files.prompts}
    for stage in ("prompts", "candidates", "route.reward", "pairs", "online_dpo_1.samples"):
        rows = run.records(stage)
        assert rows
        for row in rows:
            assert has(row, own[row["prompt"]])
    asked = {row["prompt"]: row for row in files.held_out}
    for row in run.records("evaluate.online_dpo_1"):
        assert has(row, asked[row["prompt"]])


def test_a_tfds_name_is_a_source(copied, aya, tmp_path):
    settings = {"languages": ["de", "ru"], "kinds": ["date_format"], "per_language": 3}
    prepare(tmp_path / "tfds", AtlasConfig(name="mine", **settings))
    aya.succeed(
        copied.path,
        "evaluation_prompts/source.records.source = 'tfds:aya_atlas/mine'",
        f"evaluation_prompts/source.records.data_dir = '{tmp_path / 'tfds'}'",
    )
    expected = {row["id"]: row for row in atlas.build(split="eval", **settings)}
    marked = copied.records("evaluate.online_dpo_2")
    assert {row["id"] for row in marked} == set(expected)
    for row in marked:
        # Its completion is now the model's.
        assert has({**row, "completion": row["answers"][0]}, expected[row["id"]])
    figures = copied.report()["models"]["online_dpo_2"]
    assert figures["correct"]["overall"]["n"] == len(expected) == 6
    assert set(figures["win_rate"]["by_language"]) == {"de", "ru"}
