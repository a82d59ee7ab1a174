"""Reading gin files from wherever the user is."""

import logging

import gin
import pytest

import aya_jax.training.loop  # noqa: F401  for its name in gin
from aya_jax.errors import AyaError
from aya_jax.models.config import decoder_config
from aya_jax.recipe.settings import check_scopes, parse_gin


@pytest.fixture(autouse=True)
def _plain_gin():
    gin.clear_config()
    yield
    gin.clear_config()


def test_a_file_outside_the_project_includes_ours_without_a_word(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text("include 'configs/models/tiny.gin'\nVOCABULARY = 900\n")
    with caplog.at_level(logging.WARNING):
        parse_gin(["mine.gin"], ["train.steps = 3"])
    assert caplog.text == ""
    assert decoder_config().vocab_size == 900


SCOPES = ["", "sft/western", "online_dpo/iteration_1/western"]


@pytest.mark.parametrize("scope", ["sft", "sft/western", "online_dpo/iteration_1"])
def test_a_scope_that_begins_a_stages_own_is_one(scope):
    parse_gin([], [f"{scope}/train.steps = 3"])
    check_scopes(SCOPES)


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        ("western", "unknown scope 'western' in 'western/train.steps'; known are: online_dpo, sft"),
        ("iteration_1/western", "unknown scope 'iteration_1'"),
        ("sft/wester", "unknown scope 'wester' in .*; did you mean 'western'"),
        ("online_dpo/western", "unknown scope 'western' in .*; known are: iteration_1"),
    ],
)
def test_a_scope_that_gin_would_never_apply_is_told(scope, words):
    parse_gin([], [f"{scope}/train.steps = 3"])
    with pytest.raises(AyaError, match=words):
        check_scopes(SCOPES)
