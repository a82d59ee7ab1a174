"""The layers are one program, run as often as there are layers."""

import jax
import pytest

from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import hidden_states, init_params, plain_batch


def test_forty_layers_are_the_program_of_four(family):
    def program(layers):
        fields = {**family, "num_hidden_layers": layers, "max_window_layers": 1}
        config = DecoderConfig.from_hf(fields)
        params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
        tokens = jax.ShapeDtypeStruct((2, 8), "int32")

        def loss(params, tokens):
            return hidden_states(
                config, params, plain_batch(tokens, tokens > 0), remat="full"
            ).sum()

        return jax.jit(jax.grad(loss)).lower(params, tokens).as_text().splitlines()

    # But for the windows and rotations of each layer, which are data.
    assert len(program(40)) == pytest.approx(len(program(4)), abs=2)
