"""Settings of jobs that nothing knows are refused, with what may have been meant."""

import gin
import pytest

from aya_jax.errors import AyaError
from aya_jax.models.config import DecoderConfig
from aya_jax.recipe.job_settings import activations, dpo_objective

CONFIG = DecoderConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
)


@pytest.fixture(autouse=True)
def _empty_gin():
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.mark.parametrize(
    ("binding", "asked", "told"),
    [
        ("dpo_objective.reference = 'hold'", lambda: dpo_objective(CONFIG), "did you mean 'held'"),
        ("activations.dtype = 'bfloat61'", activations, "did you mean 'bfloat16'"),
        ("activations.remat = 'ful'", activations, "did you mean 'full'"),
    ],
)
def test_what_is_unknown_is_refused(binding, asked, told):
    gin.parse_config(binding)
    with pytest.raises(AyaError, match=told):
        asked()


def test_the_reference_is_kept_with_the_data_unless_it_is_asked_for():
    assert not dpo_objective(CONFIG).held_reference
    gin.parse_config("dpo_objective.reference = 'held'")
    assert dpo_objective(CONFIG).held_reference
