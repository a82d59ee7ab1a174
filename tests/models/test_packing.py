"""Documents packed into one row give what each gives alone: logits, loss and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.models import decoder
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import Batch, hidden_states
from aya_jax.models.heads import logits, target_logprobs

LENGTHS = (7, 3, 9, 1, 6)


def rows_of(documents, layout, width):
    """Return the batch in which each of `layout`'s lists of documents is one row, and the mask."""
    tokens, positions, segments = np.zeros((3, len(layout), width), np.int32)
    for row, numbers in enumerate(layout):
        start = 0
        for segment, number in enumerate(numbers):
            text = documents[number]
            place = slice(start, start + len(text))
            tokens[row, place], positions[row, place] = text, np.arange(len(text))
            segments[row, place] = segment + 1
            start += len(text)
    return Batch(*map(jnp.asarray, (tokens, positions, segments))), jnp.asarray(positions > 0)


@pytest.mark.parametrize("backend", ["reference", "xla", "mosaic_tpu"])
def test_packed_equals_unpacked(family, backend, monkeypatch, fresh, quick_jit):
    monkeypatch.setattr(decoder, "attention", partial(decoder.attention, backend=backend))
    config = DecoderConfig.from_hf(family)
    params = fresh(config, jax.random.key(0))
    rng = np.random.default_rng(1)
    documents = [rng.integers(1, config.vocab_size, length) for length in LENGTHS]
    # Empty rows give both the same shape, hence one program.
    packed = rows_of(documents, [(0, 1, 4), (2, 3), (), (), ()], 18)
    alone = rows_of(documents, [(number,) for number in range(5)], 18)

    def loss(params, batch, mask):
        return -target_logprobs(config, params, batch, mask).sum() / mask.sum()

    @quick_jit
    def measured(batch, mask):
        hidden = hidden_states(config, params, batch)
        return logits(config, params, hidden), *jax.value_and_grad(loss)(params, batch, mask)

    one, loss_one, grad_one = measured(*packed)
    two, loss_two, grad_two = measured(*alone)
    place = {0: (0, 0), 1: (0, 7), 4: (0, 10), 2: (1, 0), 3: (1, 9)}
    for number, length in enumerate(LENGTHS):
        row, start = place[number]
        np.testing.assert_allclose(
            one[row, start : start + length], two[number, :length], atol=2e-5
        )
    assert float(loss_one) == pytest.approx(float(loss_two), abs=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), grad_one, grad_two)
