"""LoRA is a part of what a training stage is, under the stage's scope."""

from pathlib import Path

import gin
import pytest

from aya_jax.recipe.expanse import expanse
from aya_jax.recipe.settings import effective_settings, parse_gin

MICRO = str(Path(__file__).with_name("micro.gin"))


@pytest.fixture(autouse=True)
def _empty_gin():
    gin.clear_config()
    yield
    gin.clear_config()


def settings_of(*bindings):
    gin.clear_config()
    parse_gin([MICRO], bindings)
    return {s.name: effective_settings(s.uses, s.scope) for s in expanse().stages}


def changed(*bindings):
    before, after = settings_of(), settings_of(*bindings)
    return {name for name in before if before[name] != after[name]}


def test_a_binding_changes_the_stages_of_its_scope():
    assert changed("sft/lora.rank = 4") == {
        f"{model}.{cluster}"
        for model in ("arbitrage_sft", "single_teacher")
        for cluster in ("western", "eastern")
    }
    assert changed("offline_dpo/western/lora.base_dtype = 'int8'") == {"offline_dpo.western"}
    assert changed("reward/lora.alpha = 3.0") == {"reward"}


def test_without_a_scope_it_is_every_training_but_that_from_nothing():
    trained = {name for name, settings in settings_of().items() if "train.steps" in settings}
    assert changed("lora.rank = 4") == trained - {"base"}
    assert {"teacher.west", "judge", "online_dpo_2.eastern"} <= trained
