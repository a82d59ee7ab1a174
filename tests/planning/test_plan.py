"""`aya plan` from a recipe to its JSON and its page, compiled for this CPU in place of chips that need libtpu."""

import io
import json
from collections import Counter

import jax
import numpy as np
import pytest

from aya_jax.errors import AyaError
from aya_jax.models.architecture import abstract_params
from aya_jax.models.flops import train_flops
from aya_jax.planning import compiled, figures
from aya_jax.planning.programs import Training
from aya_jax.planning.topology import Topology
from aya_jax.progress import Terminal
from aya_jax.recipe import plan as planning
from aya_jax.recipe.works import Works
from aya_jax.report.plan_page import render_plan
from aya_jax.sharding.chips import CHIPS
from aya_jax.sharding.place import gin_place

RECIPE = "tests/recipe/micro.gin"
# Of models that are all brought, as the real-size recipes have them.
OWN = [
    "expanse.base_model = 'nowhere/base'",
    "expanse.reward_model = 'nowhere/reward'",
    "expanse.judge_model = 'nowhere/judge'",
    "expanse.teachers = {}",
    "expanse.teacher_files = {'one': 'nowhere/teacher', 'recorded': 'nowhere/answers.jsonl'}",
    "prompts/source.records.source = 'nowhere/prompts.jsonl'",
    "prompts/source.records.limit_per_language = 10",
    "train.steps = None",
    "train.epochs = 2.0",
]
ONE = Topology("v5e:1x1", CHIPS["v5e"], (1, 1))


class Chip:
    """This machine's device, where the links of a torus would be."""

    coords = (0, 0, 0)


@pytest.fixture(scope="module")
def for_this_cpu():
    """Programs of the plan are compiled, but for the device that is here; tells how many were."""
    calls, known = Counter(), {}

    def compile_here(topology, program, arguments, *, quick):
        key = program, str(arguments)
        if key not in known:
            calls["programs"] += 1
            known[key] = program.lower(*arguments).compile()
        made = known[key]
        told = made.memory_analysis()
        memory = compiled.Memory(
            told.argument_size_in_bytes,
            told.output_size_in_bytes,
            told.alias_size_in_bytes,
            told.temp_size_in_bytes,
        )
        module = compiled.Module.parse(made.as_text())
        return compiled.Compiled(memory, module, compiled.largest_arrays(module), 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "parse_topology", lambda name: ONE)
        patch.setattr(planning, "describe_devices", lambda _: np.asarray(jax.devices()[:1]))
        patch.setattr(figures, "compile_for", compile_here)
        yield calls


def planned(tmp_path, **options):
    out = io.StringIO()
    places = {"json_file": str(tmp_path / "plan.json"), "html_file": str(tmp_path / "plan.html")}
    told = planning.plan_recipe(
        [RECIPE], OWN, topology="v5e:1x1", terminal=Terminal(out), **places, **options
    )
    return told, out.getvalue()


@pytest.fixture(scope="module")
def plan(for_this_cpu, tmp_path_factory):
    place = tmp_path_factory.mktemp("plan")
    told, text = planned(place, price=2.0)
    return told, text, place, for_this_cpu["programs"]


@pytest.mark.slow
def test_every_stage_that_computes_has_its_figures(plan):
    told, _, place, _ = plan
    assert json.loads((place / "plan.json").read_text()) == json.loads(json.dumps(told))
    clusters = [
        f"{model}.{c}" for model in ("arbitrage_sft", "offline_dpo") for c in ("western", "eastern")
    ]
    for name in [*clusters, "candidates", "online_dpo_1.samples", "evaluate.base"]:
        stage = told["stages"][name]
        assert stage["fits"] is True
        assert 0 < stage["argument_bytes"] < stage["peak_bytes"] <= stage["hbm_bytes"] == 16 << 30
        assert stage["temp_bytes"] >= 0 and isinstance(stage["collectives"], list)
        assert stage["model_flops"] > 0 and stage["step_seconds_bound"] > 0
        expected = stage["tokens"] / stage["step_seconds_bound"]
        assert stage["tokens_per_second_bound"] == pytest.approx(expected)
        assert 0 < stage["mfu_bound"] <= 1
        assert set(stage["mesh"].values()) == {1}
    assert (
        "prompts" in told["without_accelerator"] and "arbitrage_sft" in told["without_accelerator"]
    )


@pytest.mark.slow
def test_equal_programs_are_compiled_once(plan):
    told, _, _, compiles = plan
    programs = [p for stage in told["stages"].values() for p in stage["programs"]]
    distinct = {json.dumps([p["program"], p["argument_bytes"], p["model_flops"]]) for p in programs}
    assert len(programs) > 3 * compiles
    # Greedy sampling and another one may differ in nothing that is compared here.
    assert len(distinct) <= compiles <= len(distinct) + 1


@pytest.mark.slow
def test_runs_are_counted_from_what_is_there(plan):
    stages = plan[0]["stages"]
    # The prompts' file is not here: at most 10 a language, three languages a cluster, two epochs, batches of 4.
    sft = stages["arbitrage_sft.western"]
    assert (sft["runs"], sft["runs_basis"]) == (15, "at most")
    # One teacher samples, the other's answers are recorded: 5 languages of 10 in batches of 16.
    asked = {p["name"]: p for p in stages["candidates"]["programs"]}
    assert (asked["sampling"]["runs"], asked["scoring"]["runs"]) == (4, 7)
    reference = stages["offline_dpo.western"]["programs"][0]
    assert reference["name"] == "reference" and reference["runs"] == 2


@pytest.mark.slow
def test_totals_are_the_sum_of_the_stages(plan):
    total, stages = plan[0]["total"], plan[0]["stages"]
    seconds = sum(
        p["step_seconds_bound"] * p["runs"] for s in stages.values() for p in s["programs"]
    )
    assert total["seconds_bound"] == pytest.approx(seconds)
    assert total["cost_bound"] == pytest.approx(2.0 * seconds / 3600)
    assert total["unknown_stages"] == []


@pytest.mark.slow
def test_the_text_and_the_page_say_the_same_and_claim_no_measurement(plan):
    told, text, place, _ = plan
    page = (place / "plan.html").read_text()
    assert page == render_plan(json.loads(json.dumps(told)))
    assert "nothing was run" in page and "nothing was run or measured" in text
    assert "arbitrage_sft x2" in text and "arbitrage_sft x2" in page
    assert "taken to be of the sizes in the gin file: base, judge, reward, teacher.one" in text


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_what_would(for_this_cpu, tmp_path, monkeypatch):
    small = ONE.chip._replace(hbm_bytes=1_000_000)
    tiny = Topology("v5e:1x1", small, (1, 1))
    monkeypatch.setattr(planning, "parse_topology", lambda name: tiny)
    told, text = planned(tmp_path)
    stage = told["stages"]["offline_dpo.western"]
    assert stage["fits"] is False and told["fits"] is False
    assert stage["over_bytes"] == stage["peak_bytes"] - 900_000
    assert "does not fit, by" in text and "its largest arrays: " in text
    assert told["recommendation"]["training"]["found"] is False and "take more chips" in text


def test_a_batch_that_does_not_divide_is_told(for_this_cpu, tmp_path):
    with pytest.raises(AyaError, match="does not fit 1 devices"):
        planning.plan_recipe(
            [RECIPE],
            [*OWN, "device_mesh.tensor = 2"],
            topology="v5e:1x1",
            terminal=Terminal(io.StringIO()),
        )


def test_the_programs_of_a_recipe_that_trains_all_of_its_models(for_this_cpu):
    planning.gin.clear_config()
    planning.parse_gin([RECIPE], [])
    stages = planning.expanse(present=False).stages
    works = Works(stages)
    parts = {stage.name: works.of(stage) for stage in stages}
    assert [p.name for p in parts["base"]] == ["training"] == [p.name for p in parts["reward"]]
    assert parts["tokenizer"] == parts["pairs"] == parts["online_dpo_1"] == []
    assert {p.steps for p in parts["teacher.west"]} == {6}
    work = parts["offline_dpo.western"][1].work
    assert isinstance(work, Training) and work.pairs
    assert jax.tree.structure(abstract_params(work.config)) is not None
    # Of 4 pairs both sides are read.
    assert work.model_flops(None) == train_flops(work.config, 8, 128)  # type: ignore[arg-type]


def test_a_held_reference_is_part_of_the_step(for_this_cpu):
    planning.gin.clear_config()
    planning.parse_gin([RECIPE], ["dpo_objective.reference = 'held'"])
    stages = planning.expanse(present=False).stages
    stage = next(stage for stage in stages if stage.name == "offline_dpo.western")
    (part,) = Works(stages).of(stage)
    assert part.name == "training"
    # Beside the three passes over both sides of 4 pairs, a fourth that only reads.
    passes = train_flops(part.work.config, 8, 128) / 3
    assert part.work.model_flops(None) == 4 * passes  # type: ignore[arg-type]
    step, arguments = part.work.build(gin_place())
    step.lower(*arguments)
