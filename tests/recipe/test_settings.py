"""Reading gin files from wherever the user is."""

import logging

import gin
import pytest

import aya_jax.training.loop  # noqa: F401  for its name in gin
from aya_jax.models.config import decoder_config
from aya_jax.recipe.settings import parse_gin


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
