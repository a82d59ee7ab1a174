"""The Cohere decoder against its equations in NumPy, and the scalar head."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import hidden_states, plain_batch
from aya_jax.models.heads import logits, rewards

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
def test_logits_are_those_of_the_reference_equations(qk_norm, fresh, quick_jit):
    config = replace(CONFIG, use_qk_norm=qk_norm)
    params = fresh(config, jax.random.key(0))
    tokens = np.array([[5, 7, 9, 11, 13, 2, 3]], np.int32)
    run = quick_jit(partial(hidden_states, config))
    hidden = run(params, plain_batch(tokens, np.ones_like(tokens, bool)))
    expected = numpy_decoder(config, params, tokens[0])
    np.testing.assert_allclose(logits(config, params, hidden)[0], expected, atol=1e-4)


def test_the_reward_is_read_at_the_last_real_token(fresh, quick_jit):
    params = fresh(CONFIG, jax.random.key(3), reward_head=True)
    params["score"] = jnp.arange(CONFIG.hidden_size, dtype=jnp.float32)
    tokens = np.array([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]], np.int32)
    run = quick_jit(partial(rewards, CONFIG))
    values = run(params, plain_batch(tokens, tokens > 0))
    alone = run(params, plain_batch(tokens[:1, :3], tokens[:1, :3] > 0))
    np.testing.assert_allclose(values[0], alone[0], rtol=1e-5)
    assert abs(values[0] - values[1]) > 1e-3
