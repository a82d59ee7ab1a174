import copy
import random

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.arbitrage.learned_router import (
    assign_folds,
    kl_to_rewards,
    learned_routes,
    reward_distribution,
    train_router,
)
from aya_jax.arbitrage.routers import route
from aya_jax.errors import AyaError

HOME = {"de": "west", "fr": "west", "ru": "east", "uk": "east", "ja": "asia", "ko": "asia"}
TEACHERS = ("asia", "east", "west")


def records_by_language(count=40, seed=0):
    """Prompts of random letters; the teacher that is at home in the language earns more."""
    draw = random.Random(seed)
    records = []
    for code, home in HOME.items():
        for i in range(count):
            prompt = " ".join("".join(draw.choices("abcdefghij", k=5)) for _ in range(6))
            rewards = {t: draw.gauss(1.5 if t == home else 0.0, 1.0) for t in TEACHERS}
            records.append(record(f"{code}{i}", code, prompt, rewards))
    return records


def record(name, language, prompt, rewards):
    candidates = [
        {"model": teacher, "completion": f"{teacher} on {name}", "reward": reward}
        for teacher, reward in rewards.items()
    ]
    return {"id": name, "language": language, "prompt": prompt, "candidates": candidates}


def earned(records, routed):
    """The mean reward of the completions that a router chose, looked up by their text."""
    known = {c["completion"]: c["reward"] for r in records for c in r["candidates"]}
    assert len(routed) == len(records)
    return np.mean([known[row["completion"]] for row in routed])


@pytest.fixture(autouse=True)
def no_settings():
    yield
    gin.clear_config()


def test_loss_is_kl_to_the_softmax_of_rewards():
    draw = np.random.default_rng(0)
    rewards, logits = draw.normal(0, 2, (2, 7, 4))
    answered = draw.random((7, 4)) < 0.6
    answered[:, 1] = True
    expected = []
    for r, z, there in zip(rewards, logits, answered, strict=True):
        p = np.exp(r[there] / 0.5) / np.exp(r[there] / 0.5).sum()
        q = np.exp(z[there]) / np.exp(z[there]).sum()
        expected.append((p * np.log(p / q)).sum())
    args = [jnp.asarray(x, jnp.float32) for x in (rewards, logits)]
    target = reward_distribution(args[0], answered, temperature=0.5)
    assert not np.asarray(target)[~answered].any()
    kl = kl_to_rewards(args[1], target, jnp.asarray(answered))
    np.testing.assert_allclose(kl, expected, rtol=1e-4, atol=1e-6)
    slope = jax.grad(lambda z: kl_to_rewards(z, target, jnp.asarray(answered)).sum())(args[1])
    assert np.isfinite(slope).all() and not np.asarray(slope)[~answered].any()


def test_loss_is_zero_where_the_router_is_right():
    rewards = jnp.array([[3.0, -1.0, 200.0], [0.0, 0.0, -200.0]])
    everyone = jnp.ones((2, 3), bool)
    target = reward_distribution(rewards, everyone, temperature=1.0)
    np.testing.assert_allclose(kl_to_rewards(rewards, target, everyone), 0.0, atol=1e-6)


def test_prompts_alike_are_given_the_mean_distribution_of_their_rewards():
    # The softmax nearest in KL to several distributions is their mean.
    draw = np.random.default_rng(1)
    rewards = draw.normal(size=(12, 3))
    records = [
        record(str(i), "de" if i % 2 else "fr", "the same", dict(zip("abc", row, strict=True)))
        for i, row in enumerate(rewards)
    ]
    router = train_router(records, weight_decay=0.0, steps=1000)
    logits = router.reader.features(records[:2]).astype(np.float64) @ router.weights
    shown = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    target = np.exp(rewards) / np.exp(rewards).sum(-1, keepdims=True)
    np.testing.assert_allclose(shown, [target[::2].mean(0), target[1::2].mean(0)], atol=2e-3)


def test_it_beats_random_and_single_where_the_best_teacher_depends_on_the_language():
    records = records_by_language()
    got = {
        name: earned(records, route(records, router=name))
        for name in ("reward", "learned", "single", "random")
    }
    # At home 1.5 is earned, and 0 elsewhere: a third of the prompts are at home by chance.
    assert got["learned"] > got["random"] + 0.6
    assert got["learned"] > got["single"] + 0.6
    assert got["learned"] < got["reward"]
    routed = route(records, router="learned")
    at_home = [row["source"] == HOME[row["language"]] for row in routed]
    assert np.mean(at_home) > 0.9


def test_it_reads_the_prompt_and_not_the_language_alone():
    draw = random.Random(2)
    records = []
    for i in range(200):
        word, best = draw.choice([("sum", "maths"), ("poem", "arts")])
        noise = " ".join("".join(draw.choices("abcdef", k=4)) for _ in range(4))
        rewards = {t: draw.gauss(float(t == best), 0.3) for t in ("arts", "maths")}
        records.append(record(f"{best}{i}", "en", f"{noise} {word} {noise}", rewards))
    learned = route(records, router="learned")
    assert np.mean([row["id"].startswith(row["source"]) for row in learned]) > 0.9
    assert earned(records, learned) > earned(records, route(records, router="fixed")) + 0.3


def test_a_prompts_own_rewards_do_not_change_its_route():
    records = records_by_language(count=10)
    before = learned_routes(records)
    for i in range(0, len(records), 7):
        changed = copy.deepcopy(records)
        for candidate in changed[i]["candidates"]:
            candidate["reward"] = 1e3 if candidate["model"] != before[i] else -1e3
        assert learned_routes(changed)[i] == before[i]


def test_routes_of_a_fold_depend_on_the_rewards_of_the_other_alone():
    records = records_by_language(count=20)
    fold = assign_folds(records, folds=2, seed=0)
    before = learned_routes(records)
    changed = copy.deepcopy(records)
    for row, k in zip(changed, fold, strict=True):
        for candidate in row["candidates"]:
            candidate["reward"] *= -1 if k == 0 else 1
    after = learned_routes(changed)
    moved = [k for k, a, b in zip(fold, before, after, strict=True) if a != b]
    assert set(moved) == {1}
    assert len(moved) > 0.9 * len(records) / 2


def test_folds_are_equal_parts_and_keep_a_repeated_prompt_together():
    records = records_by_language(count=10)
    fold = assign_folds(records, folds=3, seed=0)
    assert np.bincount(fold).tolist() == [20, 20, 20]
    assert (fold != assign_folds(records, folds=3, seed=1)).any()
    assert (fold[::-1] == assign_folds(records[::-1], folds=3, seed=0)).all()
    twice = [*records, *({**row, "id": "again"} for row in records)]
    np.testing.assert_array_equal(assign_folds(twice, folds=3, seed=0), np.tile(fold, 2))


def test_routes_are_a_function_of_the_records():
    records = records_by_language(count=10)
    assert learned_routes(records) == learned_routes(copy.deepcopy(records))
    assert learned_routes(records[::-1])[::-1] == learned_routes(records)


def test_a_trained_router_needs_no_candidates():
    router = train_router(records_by_language(seed=1))
    new = [{"language": code, "prompt": "abc bcd cde"} for code in HOME]
    assert router.choose(new) == list(HOME.values())
    assert router.choose([{"language": "sw", "prompt": ""}])[0] in TEACHERS


def test_missing_answers():
    records = records_by_language()
    for row in records[::3]:
        row["candidates"] = [c for c in row["candidates"] if c["model"] != HOME[row["language"]]]
    predicted = learned_routes(records)
    at_home = [name == HOME[row["language"]] for name, row in zip(predicted, records, strict=True)]
    assert np.mean(at_home) > 0.9
    routed = route(records, router="learned")
    kept = [
        row["id"]
        for name, row in zip(predicted, records, strict=True)
        if name in {c["model"] for c in row["candidates"]}
    ]
    assert [row["id"] for row in routed] == kept


def test_a_teacher_without_answers_in_training_is_not_chosen():
    records = records_by_language(count=10)
    records[0]["candidates"].append({"model": "new", "completion": "", "reward": 100.0})
    fold = assign_folds(records, folds=2, seed=0)
    chosen = np.array(learned_routes(records))
    assert "new" not in chosen[fold == fold[0]]


def test_settings_and_mistakes_are_told():
    records = records_by_language(count=4)
    with pytest.raises(AyaError, match="1 different prompts cannot be split into 2 folds"):
        route(records[:1], router="learned")
    gin.parse_config("arbitrage/learned_routes.folds = 25")
    assert len(route(records, router="learned")) == 24
    with gin.config_scope("arbitrage"), pytest.raises(AyaError, match="24 different prompts"):
        route(records, router="learned")
