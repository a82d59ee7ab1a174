"""Operations counted from a configuration, against XLA's count of the same mathematics and by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from aya_jax.models import t5
from aya_jax.models.architecture import ModelConfig
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import hidden_states, init_params, plain_batch
from aya_jax.models.flops import decode_flops, forward_flops, seen_pairs, train_flops
from aya_jax.models.heads import logits
from aya_jax.models.t5_config import T5Config

# Wide against its norms and activations, which XLA counts too; one layer, for it counts a loop's body once.
CONFIG = DecoderConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
)
T5 = T5Config(
    vocab_size=1024, d_model=256, d_ff=512, num_layers=1, num_decoder_layers=1, num_heads=4, d_kv=64
)


def counted_by_xla(call, *arguments):
    return jax.jit(call).lower(*arguments).compile().cost_analysis()["flops"]


def whole_attention(config, rows, length):
    """What a program that masks instead of skipping computes beyond the pairs that are seen."""
    unseen = config.num_hidden_layers * (length * length - seen_pairs(length))
    return 4 * rows * config.num_attention_heads * config.head_dim * unseen


def decoder_forward(config):
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    batch = plain_batch(jnp.zeros((2, 64), jnp.int32), jnp.ones((2, 64), bool))

    def forward(params):
        return logits(config, params, hidden_states(config, params, batch))

    return forward, params


def test_a_decoder_forward_and_backward_against_xla():
    forward, params = decoder_forward(CONFIG)
    masked = whole_attention(CONFIG, 2, 64)
    counted = forward_flops(CONFIG, 2, 64).total
    assert counted + masked == pytest.approx(counted_by_xla(forward, params), rel=0.02)
    # A sum of squares: of a plain sum the gradient is a constant, and products with it are none.
    grads = jax.grad(lambda params: (forward(params) ** 2).sum())
    assert train_flops(CONFIG, 2, 64) + 3 * masked == pytest.approx(
        counted_by_xla(grads, params), rel=0.05
    )


def test_an_encoder_decoder_against_xla():
    params = jax.eval_shape(lambda: t5.init_params(T5, jax.random.key(0)))

    def forward(params):
        inputs = plain_batch(jnp.zeros((2, 96), jnp.int32), jnp.ones((2, 96), bool))
        rows = plain_batch(jnp.zeros((2, 32), jnp.int32), jnp.ones((2, 32), bool))
        return logits(T5, params, t5.hidden_states(T5, params, inputs, rows))

    masked = 4 * 2 * 4 * 64 * (32 * 32 - seen_pairs(32))
    counted = forward_flops(T5, 2, 32, inputs=96).total
    assert counted + masked == pytest.approx(counted_by_xla(forward, params), rel=0.04)


@pytest.mark.parametrize(
    ("queries", "window", "before"), [(7, None, 0), (7, 3, 0), (5, 4, 2), (3, 2, 9)]
)
def test_pairs_are_those_of_a_mask(queries, window, before):
    seen = sum(
        1
        for query in range(before, before + queries)
        for key in range(query + 1)
        if window is None or query - key < window
    )
    assert seen_pairs(queries, window, before=before) == seen


def published(layers: int = 32) -> DecoderConfig:
    """Aya Expanse 8B."""
    return DecoderConfig(256_000, 4096, 14336, layers, 32, 8)


def test_8b_by_hand():
    """Six operations a parameter and token, the embedding as the head, and the attention of a row."""
    tokens, weights = 8192, 8_028_033_024 - 32 * 4096 - 4096
    attention = 3 * 32 * 4 * 4096 * (tokens * (tokens + 1) // 2)
    assert train_flops(published(), 1, tokens) == 6 * weights * tokens + attention


def test_a_step_is_linear_in_rows_and_layers():
    assert train_flops(published(), 6, 128) == 6 * train_flops(published(), 1, 128)
    head = 6 * 4096 * 256_000 * 128
    one, two = (train_flops(published(n), 1, 128) - head for n in (1, 2))
    assert two == 2 * one


def test_what_needs_no_logits_or_no_gradient_is_not_counted():
    everywhere = forward_flops(CONFIG, 2, 64)
    nowhere = forward_flops(CONFIG, 2, 64, logits=0)
    assert everywhere.weights - nowhere.weights == 2 * 256 * 1024 * 2 * 64
    assert everywhere.attention == nowhere.attention
    spared = train_flops(CONFIG, 2, 64) - train_flops(CONFIG, 2, 64, frozen=True)
    assert spared == everywhere.weights


def test_only_the_chosen_experts_count():
    mixture = replace(CONFIG, model_type="mixtral", num_local_experts=8, num_experts_per_tok=2)
    dense, chosen = forward_flops(CONFIG, 1, 1), forward_flops(mixture, 1, 1)
    assert chosen.weights - dense.weights == 2 * (3 * 256 * 640 + 256 * 8)


@pytest.mark.parametrize("config", [CONFIG, T5])
def test_an_answer_is_a_forward_pass_with_logits_at_its_own_tokens(config: ModelConfig):
    longer = decode_flops(config, 3, 16, 9) - decode_flops(config, 3, 16, 8)
    assert longer > 3 * 2 * 256 * 1024
    assert decode_flops(config, 6, 16, 8) == 2 * decode_flops(config, 3, 16, 8)
