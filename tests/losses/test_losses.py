import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.errors import AyaError
from aya_jax.losses.dpo import dpo_loss
from aya_jax.losses.reward import bradley_terry_loss
from aya_jax.losses.sft import sft_loss

RNG = np.random.default_rng(0)
LOGPS = [RNG.normal(-20, 5, 6).astype(np.float32) for _ in range(4)]


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x.astype(np.float64))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_is_the_formula_of_the_paper(smoothing):
    beta = 0.3
    total = dpo_loss(*map(jnp.asarray, LOGPS), beta=beta, label_smoothing=smoothing)
    chosen, rejected, ref_chosen, ref_rejected = (x.astype(np.float64) for x in LOGPS)
    h = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    expected = -(1 - smoothing) * log_sigmoid(h) - smoothing * log_sigmoid(-h)
    np.testing.assert_allclose(total.loss, expected.sum(), rtol=1e-5)
    assert total.count == 6
    margins = total.metrics["rewards/margins"]
    np.testing.assert_allclose(margins[0] / margins[1], h.mean(), rtol=1e-4)
    accuracies = total.metrics["rewards/accuracies"]
    np.testing.assert_allclose(
        accuracies[0] / accuracies[1],
        (beta * (chosen - ref_chosen) > beta * (rejected - ref_rejected)).mean(),
        rtol=1e-6,
    )


def test_variants():
    h = (LOGPS[0] - LOGPS[2]) - (LOGPS[1] - LOGPS[3])
    args = [jnp.asarray(x) for x in LOGPS]
    ipo = dpo_loss(*args, beta=0.5, variant="ipo").loss
    np.testing.assert_allclose(ipo, ((h - 1.0) ** 2).sum(), rtol=1e-5)
    hinge = dpo_loss(*args, beta=0.5, variant="hinge").loss
    np.testing.assert_allclose(hinge, np.maximum(1 - 0.5 * h, 0).sum(), rtol=1e-5)
    with pytest.raises(AyaError, match="did you mean 'sigmoid'"):
        dpo_loss(*args, beta=0.5, variant="sigmod")
    with pytest.raises(AyaError, match="label_smoothing"):
        dpo_loss(*args, beta=0.5, variant="ipo", label_smoothing=0.1)


def test_at_the_reference_the_dpo_loss_is_log_two_and_pushes_both_ways():
    same = jnp.asarray(LOGPS[0])

    def loss(chosen, rejected):
        return dpo_loss(chosen, rejected, same, same, beta=0.1).loss

    np.testing.assert_allclose(loss(same, same), 6 * np.log(2), rtol=1e-6)
    up, down = jax.grad(loss, argnums=(0, 1))(same, same)
    np.testing.assert_allclose(up, -0.05 * np.ones(6), rtol=1e-5)
    np.testing.assert_allclose(down, 0.05 * np.ones(6), rtol=1e-5)


def test_bradley_terry():
    a, b = LOGPS[0] / 10, LOGPS[1] / 10
    total = bradley_terry_loss(jnp.asarray(a), jnp.asarray(b), center_coefficient=0.01)
    expected = -log_sigmoid(a - b) + 0.01 * (a.astype(np.float64) + b) ** 2
    np.testing.assert_allclose(total.loss, expected.sum(), rtol=1e-5)


def test_sft_counts_only_the_mask():
    logprobs = jnp.asarray(RNG.normal(-2, 1, (2, 4)).astype(np.float32))
    mask = jnp.asarray([[0, 1, 1, 0], [0, 0, 0, 1]], bool)
    total = sft_loss(logprobs, mask)
    np.testing.assert_allclose(total.loss, -np.asarray(logprobs)[np.asarray(mask)].sum(), rtol=1e-6)
    assert total.count == 3


def test_weights_leave_rows_out():
    weights = jnp.asarray([1, 1, 1, 0, 0, 0], jnp.float32)
    args = [jnp.asarray(x) for x in LOGPS]
    part = dpo_loss(*(x[:3] for x in args), beta=0.2)
    masked = dpo_loss(*args, beta=0.2, weights=weights)
    np.testing.assert_allclose(part.loss, masked.loss, rtol=1e-6)
    assert masked.count == 3
