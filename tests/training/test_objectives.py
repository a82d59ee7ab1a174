"""What a step minimises, against float64 in NumPy on the model's own logits and hidden states."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.data.examples import Example, Rows, pack, pad
from aya_jax.model import Model
from aya_jax.models.decoder import Batch, hidden_states, plain_batch
from aya_jax.models.heads import logits
from aya_jax.recipe.reference import sequence_logprobs
from aya_jax.training.objectives import DPO, SFT, Reward

SIDES = ("chosen", "rejected")
TRL = {
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
}


@pytest.fixture(scope="module")
def completion_logprobs(config):
    """log p of each row's completion tokens: one list of float64 a row, its document alone."""

    @jax.jit
    def scores(params, tokens):
        mask = jnp.ones(tokens.shape, bool)
        return logits(config, params, hidden_states(config, params, plain_batch(tokens, mask)))

    def of(params, examples):
        out = []
        for prompt, completion, *_ in examples:
            # Padded on the right: what comes after cannot change what is read before it.
            tokens = np.zeros((1, 12), np.int32)
            tokens[0, : len(prompt) + len(completion)] = prompt + completion
            z = np.asarray(scores(params, tokens), np.float64)[0]
            logp = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
            logp -= z.max(-1, keepdims=True)
            out.append([logp[len(prompt) + i - 1, t] for i, t in enumerate(completion)])
        return out

    return of


def means(total):
    """The mean of every metric that is one number."""
    metrics = {name: pair for name, pair in total.metrics.items() if pair[0].ndim == 0}
    return {name: float(s) / float(n) for name, (s, n) in metrics.items()}


def pairs_of(arrays):
    """The examples behind padded pairs, by side."""
    out = {}
    for side in SIDES:
        tokens, segments, mask = (arrays[f"{side}_{n}"] for n in ("tokens", "segment_ids", "mask"))
        out[side] = [
            Example(t[(s > 0) & ~m].tolist(), t[m].tolist())
            for t, s, m in zip(tokens, segments, mask, strict=True)
        ]
    return out


def test_sft_is_the_likelihood_of_completion_tokens_alone(
    config, params, make_examples, completion_logprobs
):
    examples = make_examples(9)
    expected = [x for row in completion_logprobs(params, examples) for x in row]
    objective = jax.jit(SFT(config))
    for rows in (pad(examples, length=12), pack(examples, length=12)):
        total = objective(params, rows._asdict())
        assert total.count == len(expected)
        np.testing.assert_allclose(total.loss, -sum(expected), rtol=1e-5)
        np.testing.assert_allclose(means(total)["loss"], -np.mean(expected), rtol=1e-5)
    # Two documents of one row at least, or the packed rows would be the padded ones.
    assert rows.segment_ids.max() > 1


def test_packed_rows_have_the_gradient_of_unpacked_ones(config, params, make_examples):
    examples = make_examples(9)

    @jax.jit
    def gradient(params, rows):
        return jax.grad(lambda p: SFT(config)(p, rows).loss)(params)

    packed, padded = (gradient(params, f(examples, length=12)._asdict()) for f in (pack, pad))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), packed, padded
    )


def test_what_is_not_learnt_is_not_counted(config, params, make_examples):
    # Other ids after the last completion token and other first tokens of a row that is all prompt.
    rows = pad(make_examples(4), length=12)
    other = rows.tokens.copy()
    other[rows.segment_ids == 0] = 7
    objective = jax.jit(SFT(config))
    plain, changed = (
        objective(params, {**rows._asdict(), "tokens": tokens}).loss
        for tokens in (rows.tokens, other)
    )
    assert plain == changed


@pytest.mark.parametrize("held", [False, True])
def test_dpo_is_the_formula_on_the_models_own_likelihoods(
    config, params, make_params, pair_arrays, completion_logprobs, held
):
    arrays = pair_arrays(5)
    examples = pairs_of(arrays)
    policy = {side: completion_logprobs(params, examples[side]) for side in SIDES}
    reference = {
        side: np.array([sum(x) for x in completion_logprobs(make_params(8), examples[side])])
        for side in SIDES
    }
    beta, weight = 0.7, 0.3
    objective = DPO(config, beta=beta, sft_weight=weight, held_reference=held)
    if held:
        told = jax.jit(objective.reference)(make_params(8), arrays)
    else:
        told = {f"reference_{side}": reference[side].astype(np.float32) for side in SIDES}
    total = jax.jit(objective)(params, {**arrays, **told})
    summed = {side: np.array([sum(x) for x in policy[side]]) for side in SIDES}
    chosen, rejected = (beta * (summed[side] - reference[side]) for side in SIDES)
    loss = np.logaddexp(0, -(chosen - rejected))
    nll = -np.array([np.mean(x) for x in policy["chosen"]])
    expected = {
        "loss": (loss + weight * nll).mean(),
        "nll_loss": nll.mean(),
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).mean(),
        "logps/chosen": summed["chosen"].mean(),
        "logps/rejected": summed["rejected"].mean(),
    }
    assert 0 < expected["rewards/accuracies"] < 1
    found = means(total)
    assert found.keys() == expected.keys() and found.keys() >= TRL
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(total.loss, (loss + weight * nll).sum(), rtol=1e-4)
    assert total.count == 5


@pytest.mark.parametrize(
    ("variant", "value"), [("sigmoid", math.log(2)), ("hinge", 1.0), ("ipo", (1 / 0.4) ** 2)]
)
def test_at_step_0_the_policy_is_its_own_reference(config, params, pair_arrays, variant, value):
    # The reference's likelihoods come from another program, in batches of another size.
    arrays = pair_arrays(5)
    model = Model(config, params, None, {})
    for side in SIDES:
        rows = Rows(*(arrays[f"{side}_{name}"] for name in Rows._fields))
        arrays[f"reference_{side}"] = sequence_logprobs(model, rows, batch_size=2)
    found = means(jax.jit(DPO(config, beta=0.2, variant=variant))(params, arrays))
    np.testing.assert_allclose(found["loss"], value, rtol=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        np.testing.assert_allclose(found[name], 0, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_reward_is_bradley_terry_on_the_head_at_the_last_token(
    config, reward_params, pair_arrays, completion_logprobs, weight
):
    arrays = pair_arrays(5)
    score = reward_params["score"].astype(np.float64)
    body = {name: leaf for name, leaf in reward_params.items() if name != "score"}
    rewards = {}
    for side in SIDES:
        rows = Batch(*(arrays[f"{side}_{n}"] for n in ("tokens", "positions", "segment_ids")))
        hidden = np.asarray(hidden_states(config, reward_params, rows), np.float64)
        last = [np.flatnonzero(segments)[-1] for segments in rows.segment_ids]
        rewards[side] = np.array([hidden[r, t] @ score for r, t in enumerate(last)])
    chosen, rejected = rewards["chosen"], rewards["rejected"]
    loss = np.logaddexp(0, rejected - chosen) + 0.05 * (chosen + rejected) ** 2
    logprobs = completion_logprobs(body, pairs_of(arrays)["chosen"])
    nll = -np.array([np.mean(row) for row in logprobs])
    objective = Reward(config, center_coefficient=0.05, sft_weight=weight)
    total = jax.jit(objective)(reward_params, arrays)
    expected = {
        "loss": (loss + weight * nll).mean(),
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).mean(),
        **({"nll_loss": nll.mean()} if weight else {}),
    }
    found = means(total)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(total.loss, (loss + weight * nll).sum(), rtol=1e-4)


def test_remat_changes_no_figure_and_no_gradient(config, params, sft_arrays):
    arrays = sft_arrays(4)

    def of(objective):
        return jax.jit(jax.value_and_grad(lambda p: objective(p, arrays).loss))(params)

    (plain, gradient), (again, other) = of(SFT(config)), of(SFT(config, remat="full"))
    np.testing.assert_allclose(again, plain, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), other, gradient
    )
