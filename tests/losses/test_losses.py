import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aya_jax.errors import AyaError
from aya_jax.losses.dpo import dpo_loss
from aya_jax.losses.reward import bradley_terry_loss
from aya_jax.losses.sft import sft_loss
from aya_jax.losses.total import LANGUAGES, add

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


BETA = 0.3
VARIANTS = {
    "sigmoid": lambda h, e: -(1 - e) * log_sigmoid(BETA * h) - e * log_sigmoid(-BETA * h),
    "hinge": lambda h, e: np.maximum(1 - BETA * h, 0),
    "ipo": lambda h, e: (h - 1 / (2 * BETA)) ** 2,
}
CASES = [("sigmoid", 0.0), ("sigmoid", 0.1), ("sigmoid", 0.5), ("hinge", 0.0), ("ipo", 0.0)]
pairs_of_logps = st.integers(1, 6).flatmap(
    lambda p: st.lists(
        st.lists(st.integers(-300, 0).map(lambda n: n / 8), min_size=p, max_size=p),
        min_size=4,
        max_size=4,
    )
)


@pytest.mark.parametrize(("variant", "smoothing"), CASES)
@given(logps=pairs_of_logps)
@settings(max_examples=15, deadline=None)
def test_every_variant_is_its_formula_with_the_metrics_of_trl(variant, smoothing, logps):
    total = dpo_loss(
        *(jnp.asarray(x, jnp.float32) for x in logps),
        beta=BETA,
        variant=variant,
        label_smoothing=smoothing,
    )
    chosen, rejected, ref_chosen, ref_rejected = np.asarray(logps)
    each = VARIANTS[variant]((chosen - ref_chosen) - (rejected - ref_rejected), smoothing)
    ours, theirs = BETA * (chosen - ref_chosen), BETA * (rejected - ref_rejected)
    expected = {
        "loss": each.mean(),
        "rewards/chosen": ours.mean(),
        "rewards/rejected": theirs.mean(),
        "rewards/margins": (ours - theirs).mean(),
        "rewards/accuracies": (chosen - ref_chosen > rejected - ref_rejected).mean(),
        "logps/chosen": chosen.mean(),
        "logps/rejected": rejected.mean(),
    }
    assert total.metrics.keys() == expected.keys()
    for name, (value, count) in total.metrics.items():
        assert count == len(chosen)
        np.testing.assert_allclose(value / count, expected[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total.loss, each.sum(), rtol=1e-5, atol=1e-5)


def central_difference(of, arrays, step=1e-5):
    """The slope of a float64 function of several arrays, entry by entry."""
    arrays = [np.asarray(x, np.float64) for x in arrays]
    slopes = [np.zeros_like(x) for x in arrays]
    for array, slope in zip(arrays, slopes, strict=True):
        for i in np.ndindex(array.shape):
            kept = array[i]
            array[i] = kept + step
            up = of(*arrays)
            array[i] = kept - step
            slope[i] = (up - of(*arrays)) / (2 * step)
            array[i] = kept
    return slopes


@pytest.mark.parametrize(("variant", "smoothing"), CASES)
def test_dpo_gradients_are_those_of_finite_differences(variant, smoothing):
    weights = np.array([1, 1, 0, 1, 0, 1], np.float64)

    def plain(c, r, ref_c, ref_r):
        return (VARIANTS[variant]((c - ref_c) - (r - ref_r), smoothing) * weights).sum()

    def ours(*logps):
        return dpo_loss(
            *logps,
            beta=BETA,
            variant=variant,
            label_smoothing=smoothing,
            weights=jnp.asarray(weights, jnp.float32),
        ).loss

    slopes = jax.grad(ours, argnums=(0, 1, 2, 3))(*map(jnp.asarray, LOGPS))
    for found, expected in zip(slopes, central_difference(plain, LOGPS), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert not np.asarray(found)[weights == 0].any()
    assert np.abs(slopes[0]).max() > 0.01


def test_bradley_terry_metrics_and_gradients():
    rewards = [LOGPS[0] / 10, LOGPS[1] / 10]
    weights = np.array([1, 0, 1, 1, 1, 0], np.float64)

    def each(a, b):
        return -log_sigmoid(a - b) + 0.05 * (a + b) ** 2

    def ours(a, b):
        return bradley_terry_loss(
            a, b, center_coefficient=0.05, weights=jnp.asarray(weights, jnp.float32)
        )

    total = ours(*map(jnp.asarray, rewards))
    a, b = (x.astype(np.float64) for x in rewards)
    kept = weights > 0
    expected = {
        "loss": each(a, b)[kept].mean(),
        "rewards/chosen": a[kept].mean(),
        "rewards/rejected": b[kept].mean(),
        "rewards/margins": (a - b)[kept].mean(),
        "rewards/accuracies": (a > b)[kept].mean(),
    }
    assert total.count == 4 and total.metrics.keys() == expected.keys()
    for name, (value, count) in total.metrics.items():
        np.testing.assert_allclose(value / count, expected[name], rtol=1e-5, err_msg=name)
    slopes = jax.grad(lambda a, b: ours(a, b).loss, argnums=(0, 1))(*map(jnp.asarray, rewards))
    numeric = central_difference(lambda a, b: (each(a, b) * weights).sum(), rewards)
    for found, slope in zip(slopes, numeric, strict=True):
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("margin", [-1e4, -90.0, 90.0, 1e4])
def test_far_apart_is_no_overflow(margin):
    zero, far = jnp.zeros(1), jnp.full(1, margin)

    def losses(x):
        return (
            dpo_loss(x, zero, zero, zero, beta=1.0).loss,
            bradley_terry_loss(x, zero).loss,
        )

    for value, slope in zip(losses(far), jax.jacobian(losses)(far), strict=True):
        np.testing.assert_allclose(value, max(-margin, 0.0), atol=1e-6)
        np.testing.assert_allclose(slope, [-1.0 if margin < 0 else 0.0], atol=1e-6)


def test_totals_of_parts_add_up_to_the_whole():
    args = [jnp.asarray(x) for x in LOGPS]
    whole = dpo_loss(*args, beta=0.2)
    # Parts of unequal size: a mean of their means would be another.
    parts = [dpo_loss(*(x[cut] for x in args), beta=0.2) for cut in (slice(0, 2), slice(2, 6))]
    added = add(*parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, whole)
    means = [part.loss / part.count for part in parts]
    assert abs(sum(means) / 2 - whole.loss / whole.count) > 0.01


def test_sft_learns_nothing_outside_the_mask():
    logprobs = jnp.asarray(RNG.normal(-2, 1, (2, 5)).astype(np.float32))
    mask = jnp.asarray([[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    slope = jax.grad(lambda x: sft_loss(x, mask).loss)(logprobs)
    np.testing.assert_array_equal(slope, -np.asarray(mask, np.float32))
    nothing = sft_loss(logprobs, jnp.zeros_like(mask))
    assert nothing.loss == 0 and nothing.count == 0


def test_losses_are_told_by_language():
    rng = np.random.default_rng(5)
    logprobs, mask = rng.normal(-2, 1, (3, 7)).astype(np.float32), rng.random((3, 7)) < 0.6
    languages = rng.integers(0, 4, (3, 7)).astype(np.int32)
    languages[0, 0], languages[0, 1] = 70, 3  # beyond what there is room for
    total = sft_loss(jnp.asarray(logprobs), jnp.asarray(mask), jnp.asarray(languages))
    sums, counts = total.metrics["loss_by_language"]
    for number in range(1, 5):
        own = mask & (languages == number)
        np.testing.assert_allclose(sums[number], -logprobs[own].astype(np.float64).sum(), rtol=1e-5)
        assert counts[number] == own.sum()
    assert sums.shape == counts.shape == (LANGUAGES,)

    pairs = rng.normal(-20, 3, (4, 6)).astype(np.float32)
    own = jnp.asarray([1, 2, 1, 0, 2, 2])
    total = dpo_loss(*map(jnp.asarray, pairs), beta=0.2, languages=own)
    one = dpo_loss(*(jnp.asarray(side[[1, 4, 5]]) for side in pairs), beta=0.2)
    sums, counts = total.metrics["loss_by_language"]
    np.testing.assert_allclose([sums[2], counts[2]], [one.loss, one.count], rtol=1e-6)
    total = bradley_terry_loss(*map(jnp.asarray, pairs[:2]), languages=own)
    sums, counts = total.metrics["loss_by_language"]
    np.testing.assert_allclose([sums.sum(), counts.sum()], [total.loss, total.count], rtol=1e-6)
