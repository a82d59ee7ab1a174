"""The stages of a study of merging, and what it finds of the models that are merged."""

import json

import gin
import pytest

from aya_jax.recipe import tasks
from aya_jax.recipe.expanse import expanse
from aya_jax.recipe.settings import check_scopes, effective_settings, parse_gin
from aya_jax.recipe.stages import Context

STUDY = [
    "expanse.preference = False",
    "expanse.opponent = 'mixed_sft'",
    "expanse.baselines = ()",
    "expanse.merges = ('slerp', 'ties')",
    "expanse.unmerged = True",
    "expanse.mixed = True",
    "expanse.diagnosis = True",
    "offline_dpo/train.steps = 3",
    "online_dpo/iteration_2/train.steps = 3",
]


@pytest.fixture(autouse=True)
def _empty_gin():
    gin.clear_config()
    yield
    gin.clear_config()


def planned(*bindings):
    parse_gin(["tests/recipe/micro.gin"], bindings)
    return expanse()


def test_a_study_of_merging_has_no_preference_training():
    recipe = planned(*STUDY)
    names = [stage.name for stage in recipe.stages]
    assert not [name for name in names if "dpo" in name or name == "pairs"]
    assert recipe.final == "arbitrage_sft" and recipe.steps == ("base", "arbitrage_sft")
    evaluated = [name.removeprefix("evaluate.") for name in names if name.startswith("evaluate.")]
    parts = ["arbitrage_sft.western", "arbitrage_sft.eastern"]
    merges = ["slerp_merge", "ties_merge"]
    assert evaluated == ["base", *parts, *merges, "mixed_sft", "arbitrage_sft"]
    assert "diagnosis.arbitrage_sft" in names
    # Its file may have the settings of what it leaves out.
    check_scopes([*recipe.left_out, *(stage.scope for stage in recipe.stages), "mixed"])


def test_the_whole_recipe_looks_at_the_models_before_every_merge():
    names = [stage.name for stage in planned("expanse.diagnosis = True").stages]
    found = [name for name in names if name.startswith("diagnosis.")]
    merged = ("arbitrage_sft", "offline_dpo", "online_dpo_1", "online_dpo_2")
    assert found == [f"diagnosis.{name}" for name in merged]
    assert planned().left_out == ()


def test_slerp_of_several_clusters_is_their_karcher_mean():
    (merge,) = [stage for stage in planned(*STUDY).stages if stage.name == "slerp_merge"]
    assert merge.extra["method"] == "karcher"
    assert effective_settings(merge.uses, merge.scope)["merge.weights"] is None


def test_what_is_found_of_the_parts_is_kept(tiny_model, tmp_path):
    inputs = {"a": tiny_model, "b": tiny_model, "start": tiny_model}
    context = Context("diagnosis.x", tmp_path, inputs, None, tmp_path)
    figures = tasks.diagnosis(context, parts=("a", "b"), start="start")
    found = json.loads((tmp_path / tasks.DIAGNOSIS).read_text())
    assert figures == {"conflicts": 0.0}
    assert found["models"] == ["a", "b"]
    assert found["all"]["distance"] == [[0, 0], [0, 0]]
    assert found["all"]["cosine"] == [[None, None], [None, None]]
