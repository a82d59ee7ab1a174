import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.data.examples import Example, pack, pad
from aya_jax.errors import AyaError
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import (
    Batch,
    decode_step,
    hidden_states,
    init_params,
    plain_batch,
    prefill,
)
from aya_jax.models.heads import logits, rewards, target_logprobs

CONFIG = DecoderConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    logit_scale=0.5,
    initializer_range=0.2,
)


def numpy_decoder(config, params, tokens):
    """The Cohere forward of one sequence in float64, written from the reference's equations."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    n, k, h = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    t = len(tokens)

    def norm(x, weight):
        centred = x - x.mean(-1, keepdims=True)
        return weight * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    def rope(x):
        frequencies = 1.0 / config.rope_theta ** (np.arange(0, h, 2) / h)
        angles = np.repeat(np.arange(t)[:, None] * frequencies, 2, axis=-1)[:, None]
        turned = np.empty_like(x)
        turned[..., ::2], turned[..., 1::2] = -x[..., 1::2], x[..., ::2]
        return x * np.cos(angles) + turned * np.sin(angles)

    x = params["embedding"][tokens]
    for i in range(config.num_hidden_layers):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]["block"])
        y = norm(x, p["input_norm"]["weight"])
        q = np.einsum("td,dnh->tnh", y, p["q"])
        key, value = (np.einsum("td,dkh->tkh", y, p[w]) for w in ("k", "v"))
        if config.use_qk_norm:
            q, key = norm(q, p["q_norm"]["weight"]), norm(key, p["k_norm"]["weight"])
        q, key = rope(q), rope(key)
        key, value = np.repeat(key, n // k, axis=1), np.repeat(value, n // k, axis=1)
        scores = np.einsum("tnh,snh->nts", q, key) / np.sqrt(h)
        scores = np.where(np.tril(np.ones((t, t), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("nts,snh->tnh", weights, value)
        gate = y @ p["gate"]
        mlp = (gate / (1 + np.exp(-gate)) * (y @ p["up"])) @ p["down"]
        x = x + np.einsum("tnh,nhd->td", attended, p["o"]) + mlp
    x = norm(x, params["final_norm"]["weight"])
    return x @ params["embedding"].T * config.logit_scale


@pytest.mark.parametrize("qk_norm", [False, True])
def test_logits_are_those_of_the_reference_equations(qk_norm):
    config = DecoderConfig(**{**CONFIG.__dict__, "use_qk_norm": qk_norm})
    params = init_params(config, jax.random.key(0))
    tokens = np.array([[5, 7, 9, 11, 13, 2, 3]], np.int32)
    hidden = hidden_states(config, params, plain_batch(tokens, np.ones_like(tokens, bool)))
    expected = numpy_decoder(config, params, tokens[0])
    np.testing.assert_allclose(logits(config, params, hidden)[0], expected, atol=1e-4)


def test_packed_rows_equal_rows_of_their_own():
    params = init_params(CONFIG, jax.random.key(1))
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.integers(5, 50, p).tolist(), rng.integers(5, 50, c).tolist())
        for p, c in [(3, 4), (5, 2), (2, 6), (4, 4)]
    ]
    totals = []
    for rows in (pack(examples, length=16), pad(examples, length=16)):
        batch = Batch(*(jnp.asarray(x) for x in rows[:3]))
        logprobs = target_logprobs(CONFIG, params, batch, jnp.asarray(rows.mask))
        by_token = np.asarray(logprobs)[rows.mask]
        totals.append((np.sort(by_token), rows.mask.sum()))
    assert totals[0][1] == totals[1][1] == 16
    np.testing.assert_allclose(totals[0][0], totals[1][0], atol=1e-5)


def test_decoding_step_by_step_equals_the_full_forward():
    params = init_params(CONFIG, jax.random.key(2))
    tokens = np.random.default_rng(0).integers(5, 50, (2, 9)).astype(np.int32)
    full = hidden_states(CONFIG, params, plain_batch(tokens, np.ones_like(tokens, bool)))
    lengths = np.array([3, 5])
    mask = np.arange(5) < lengths[:, None]
    _, cache = prefill(CONFIG, params, plain_batch(tokens[:, :5] * mask, mask), slots=9)
    for step in range(4):
        places = lengths + step
        now = tokens[np.arange(2), places]
        hidden, cache = decode_step(CONFIG, params, cache, jnp.asarray(now), jnp.asarray(places))
        np.testing.assert_allclose(hidden, full[np.arange(2), places], atol=1e-5)


def test_the_reward_is_read_at_the_last_real_token():
    params = init_params(CONFIG, jax.random.key(3), reward_head=True)
    params["score"] = jnp.arange(CONFIG.hidden_size, dtype=jnp.float32)
    tokens = np.array([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]], np.int32)
    values = rewards(CONFIG, params, plain_batch(tokens, tokens > 0))
    alone = rewards(CONFIG, params, plain_batch(tokens[:1, :3], tokens[:1, :3] > 0))
    np.testing.assert_allclose(values[0], alone[0], rtol=1e-5)
    assert abs(values[0] - values[1]) > 1e-3


def test_what_a_config_asks_for_that_is_not_there_is_refused_by_name():
    good = CONFIG.to_hf()
    assert DecoderConfig.from_hf(good) == CONFIG
    with pytest.raises(AyaError, match="rope_scaling: rope_type 'dynamic' is not supported"):
        DecoderConfig.from_hf({**good, "rope_scaling": {"type": "dynamic", "factor": 2.0}})
    with pytest.raises(AyaError, match="model_type 'gpt2'"):
        DecoderConfig.from_hf({**good, "model_type": "gpt2"})
    with pytest.raises(AyaError, match="'hidden_size' is missing"):
        DecoderConfig.from_hf({k: v for k, v in good.items() if k != "hidden_size"})
