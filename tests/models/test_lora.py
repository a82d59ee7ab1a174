"""LoRA and 8 bits are what the formulas say, against float64 and against plain parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.errors import AyaError
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import decode_step, hidden_states, init_params, plain_batch, prefill
from aya_jax.models.heads import logits, target_logprobs
from aya_jax.models.lora import (
    INPUTS,
    LoRA,
    average,
    freeze,
    init_adapters,
    join,
    merge,
    quantize,
)
from aya_jax.models.weights import Int8, LowRank, contract, dense

ATTENTION = ("q", "k", "v", "o")
# (axes that are summed over, shape) of a matrix such as q, o or gate.
SHAPES = [(1, (6, 3, 4)), (2, (3, 4, 6)), (1, (6, 10))]


@pytest.fixture(scope="module")
def llama(fresh):
    config = DecoderConfig.from_hf(
        {
            "model_type": "llama",
            "vocab_size": 48,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.2,
        }
    )
    return config, fresh(config, jax.random.key(0))


def lora_for(config, **settings):
    settings = {"rank": 3, "alpha": 5.0, **settings}
    return LoRA(targets=ATTENTION if config.num_local_experts else tuple(INPUTS), **settings)


def random_like(tree, seed, size=0.3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, size, x.shape), x.dtype), tree)


def random_adapters(lora, params, seed=0, size=0.3):
    shapes = jax.eval_shape(partial(init_adapters, lora), params, jax.random.key(0))
    return random_like(shapes, seed, size)


def float64(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def draw(inputs, shape, seed=0):
    """x, base, a and b of a matrix, and a gradient of the output, in float32."""
    rng = np.random.default_rng(seed)
    over, out = shape[:inputs], shape[inputs:]
    shapes = ((2, 5, *over), shape, (*over, 2), (2, *out), (2, 5, *out))
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def int8_of(matrix, inputs):
    """The definition, in NumPy: largest number of each output over 127, rounded to the nearest."""
    matrix = np.asarray(matrix, np.float32)
    over = tuple(range(inputs))
    scale = np.abs(matrix).max(over, keepdims=True) / np.float32(127)
    values = np.rint(matrix / np.where(scale > 0, scale, 1)).astype(np.int8)
    return Int8(jnp.asarray(values), jnp.asarray(scale))


@pytest.mark.parametrize(("inputs", "shape"), SHAPES)
@pytest.mark.parametrize("eight_bits", [False, True])
def test_products_and_their_gradients(inputs, shape, eight_bits):
    x, base, a, b, grad = draw(inputs, shape)
    held = int8_of(base, inputs) if eight_bits else base
    matrix = LowRank(held, a, b, 0.7)

    def value(x, a, b):
        return contract(x, LowRank(held, a, b, 0.7), inputs)

    x64, a64, b64, grad64 = float64(x, a, b, grad)
    base64 = np.asarray(base, np.float64)
    if eight_bits:
        base64 = np.asarray(held.values, np.float64) * np.asarray(held.scale, np.float64)
        expected = np.tensordot(x64, base64, inputs)
        np.testing.assert_allclose(contract(x, held, inputs), expected, atol=1e-5)
    whole = base64 + 0.7 * np.tensordot(a64, b64, 1)
    assert matrix.shape == whole.shape
    np.testing.assert_allclose(value(x, a, b), np.tensordot(x64, whole, inputs), atol=2e-5)
    got = jax.grad(lambda *args: (value(*args) * grad).sum(), argnums=(0, 1, 2))(x, a, b)
    k, m = np.prod(shape[:inputs]), np.prod(shape[inputs:])
    flat_x, flat_g = x64.reshape(-1, k), grad64.reshape(-1, m)
    flat_a, flat_b = a64.reshape(k, -1), b64.reshape(-1, m)
    expected = (
        (flat_g @ whole.reshape(k, m).T).reshape(x.shape),
        (0.7 * flat_x.T @ flat_g @ flat_b.T).reshape(a.shape),
        (0.7 * (flat_x @ flat_a).T @ flat_g).reshape(b.shape),
    )
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_bfloat16_rounds_products_and_nothing_else():
    x, base, *_ = draw(1, (6, 10))
    held = int8_of(base, 1)
    out = contract(x.astype(jnp.bfloat16), held)
    x64, values, scale = float64(x.astype(jnp.bfloat16), held.values, held.scale)
    # One rounding of the product, one of the scaled one: 2^-8 each. Scaled weights would be rounded too.
    expected = (x64 @ values) * scale
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2 * 2**-8, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_quantized_numbers_are_within_half_a_step(kind, llama):
    config = DecoderConfig.from_hf({**llama[0].to_hf(), "model_type": kind})
    params = random_like(jax.eval_shape(lambda: init_params(config, jax.random.key(0))), 0)
    block = params["layers"]["block"]
    block["gate"] = block["gate"].at[..., 0].set(0.0)  # an output without a scale
    held = quantize(params)
    for name, leaf in held["layers"]["block"].items():
        if name not in INPUTS:
            jax.tree.map(np.testing.assert_array_equal, leaf, block[name])  # norms, routers
            continue
        assert leaf.values.dtype == jnp.int8 and leaf.shape == block[name].shape
        stacked = block[name].ndim - (2 if name in ("gate", "up", "down") else 3)
        for index in np.ndindex(*leaf.shape[:stacked]):
            expected = int8_of(block[name][index], INPUTS[name])
            scale = np.where(expected.scale > 0, expected.scale, 1 / 127)
            np.testing.assert_allclose(leaf.scale[index], scale, rtol=1e-6)
            steps = np.abs(np.asarray(dense(leaf, jnp.float32) - block[name])) / leaf.scale
            assert steps.max() <= 0.5 + 1e-4
        assert np.abs(leaf.values).max() == 127
    assert held["embedding"] is params["embedding"]
    assert not np.asarray(held["layers"]["block"]["gate"].values)[..., 0].any()


def test_a_model_with_adapters_is_the_merged_model(family, fresh, quick_jit):
    config = DecoderConfig.from_hf(family)
    params, lora = fresh(config, jax.random.key(0)), lora_for(config)
    adapters = random_adapters(lora, params, size=0.15)
    eight = quantize(params)
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 48, (2, 9)))
    batch = plain_batch(tokens, jnp.ones(tokens.shape, bool))

    @quick_jit
    def scores(params):
        return logits(config, params, hidden_states(config, params, batch))

    merged = scores(merge(lora, params, adapters))
    assert np.abs(merged - scores(params)).max() > 0.1
    np.testing.assert_allclose(scores(join(lora, params, adapters)), merged, atol=1e-5)
    # The same with 8 bits: plain parameters of the same numbers give the same.
    plain = jax.tree.map(
        lambda leaf: dense(leaf, jnp.float32), eight, is_leaf=lambda leaf: isinstance(leaf, Int8)
    )
    both = scores(join(lora, eight, adapters))
    np.testing.assert_allclose(both, scores(merge(lora, plain, adapters)), atol=1e-5)
    if config.num_local_experts:  # that have no adapters
        np.testing.assert_allclose(scores(eight), scores(plain), atol=1e-5)


def test_gradients_follow_from_those_of_the_merged_matrices(llama, quick_jit):
    config, params = llama
    lora = lora_for(config, use_rslora=True)
    assert lora.scale == pytest.approx(5 / np.sqrt(3))
    adapters = random_adapters(lora, params)
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 48, (2, 9)))
    mask = jnp.arange(9)[None] > jnp.array([[2], [4]])
    batch = plain_batch(tokens, jnp.ones(tokens.shape, bool))

    def loss(params):
        return -target_logprobs(config, params, batch, mask).sum()

    got = quick_jit(jax.grad(lambda adapters: loss(join(lora, params, adapters))))(adapters)
    whole = quick_jit(jax.grad(loss))(merge(lora, params, adapters))["layers"]["block"]
    for name, part in adapters["layers"]["block"].items():
        a, b, grad = float64(part["a"], part["b"], whole[name])
        layers, rank = len(a), a.shape[-1]
        a, b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        grad = grad.reshape(layers, a.shape[1], b.shape[2])
        # d(base + s a b) = s (da b + a db)
        expected = {"a": grad @ b.transpose(0, 2, 1), "b": a.transpose(0, 2, 1) @ grad}
        for side, ours in got["layers"]["block"][name].items():
            theirs = lora.scale * expected[side].reshape(ours.shape)
            assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_adapters_decode_from_a_cache_as_they_read(llama, quick_jit):
    config, params = llama
    lora = lora_for(config)
    joined = join(lora, quantize(params), random_adapters(lora, params))
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 48, (2, 6)))
    batch = plain_batch(tokens, jnp.ones(tokens.shape, bool))
    start = jax.tree.map(lambda x: x[:, :5], batch)

    @quick_jit
    def both(params):
        _, cache = prefill(config, params, start, slots=6)
        last, _ = decode_step(config, params, cache, tokens[:, 5], jnp.full(2, 5))
        return last, hidden_states(config, params, batch)[:, 5]

    np.testing.assert_allclose(*both(joined), atol=2e-5)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_adapters_that_learnt_nothing_change_no_bit(llama, dtype):
    config, params = llama
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    block = params["layers"]["block"]
    block["q"] = block["q"].at[0, 0].set(-0.0)
    lora = lora_for(config)
    adapters = init_adapters(lora, params, jax.random.key(1))
    assert bits(merge(lora, params, adapters)) == bits(params)
    for name, part in adapters["layers"]["block"].items():
        assert not part["b"].any() and part["a"].any()
        split = 1 + INPUTS[name]
        assert part["a"].shape == (*block[name].shape[:split], 3)
        # Uniform over (-1, 1) / sqrt(inputs).
        bound = np.prod(block[name].shape[1:split]) ** -0.5
        assert 0.8 * bound < np.abs(part["a"]).max() <= bound
        assert np.abs(part["a"].mean()) < 0.2 * bound


def test_merging_rounds_once(llama):
    config, params = llama
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    lora = lora_for(config)
    adapters = random_adapters(lora, half)
    merged = merge(lora, half, adapters)["layers"]["block"]
    for name, part in adapters["layers"]["block"].items():
        base, a, b = float64(half["layers"]["block"][name], part["a"], part["b"])
        exact = base + lora.scale * np.stack(
            [np.tensordot(x, y, 1) for x, y in zip(a, b, strict=True)]
        )
        assert merged[name].dtype == jnp.bfloat16
        # No further from the exact sum than half of a last place (of 8 bits), and a little for float32.
        error = np.abs(np.asarray(merged[name], np.float64) - exact)
        assert (error <= 2.0**-9 * 2 ** np.ceil(np.log2(np.abs(exact))) + 1e-6).all()
    on_host = jax.tree.map(np.asarray, half)
    again = merge(lora, on_host, adapters)
    assert bits(again["layers"]["block"]["q"]) == bits(merged["q"])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(again))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_average_of_adapters_is_that_of_the_merged_models(llama, use_rslora):
    config, params = llama
    lora = lora_for(config, use_rslora=use_rslora)
    three = [random_adapters(lora, params, seed) for seed in range(3)]
    weights = (0.5, 0.2, 0.3)
    whole, adapters = average(lora, three, weights)
    assert (whole.rank, whole.use_rslora) == (9, use_rslora)
    models = [merge(lora, params, each) for each in three]
    mean = jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)), *models
    )
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5),
        merge(whole, params, adapters),
        mean,
    )
    assert average(lora, three[:1], (1.0,)) == (lora, three[0])


def test_a_reward_head_is_trained_whole(llama):
    config, params = llama
    with_head = {**params, "score": jnp.arange(24.0, dtype=jnp.bfloat16)}
    lora = lora_for(config)
    adapters = init_adapters(lora, with_head, jax.random.key(0))
    assert adapters["score"].dtype == jnp.float32
    adapters["score"] = adapters["score"] + 1
    for params in (join(lora, with_head, adapters), merge(lora, with_head, adapters)):
        np.testing.assert_array_equal(params["score"], np.arange(24.0) + 1)


def test_what_is_trained_is_small_and_a_base_in_8_bits_a_quarter(llama):
    _, params = llama
    lora = LoRA(2, 4.0, ("q", "v"), base_dtype="int8")
    adapters = init_adapters(lora, params, jax.random.key(0))
    d, n, k, h, layers = 24, 4, 2, 6, 3
    count = layers * 2 * ((d + n * h) + (d + k * h))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(adapters)) == 4 * count
    matrices = {name: params["layers"]["block"][name] for name in INPUTS}
    held = {name: freeze(lora, params)["layers"]["block"][name] for name in INPUTS}
    scales = sum(leaf.scale.nbytes for leaf in held.values())
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (held, matrices)]
    assert sizes[0] - scales == sizes[1] / 4 and scales < sizes[1] / 16
    half = freeze(LoRA(2, 4.0, base_dtype="bfloat16"), params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}
    assert freeze(LoRA(2, 4.0), params) is params


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 0}, "lora.rank is 0"),
        ({"targets": ()}, "lora.targets is empty"),
        ({"targets": ("q", "kv")}, "unknown matrix 'kv'; did you mean"),
        ({"base_dtype": "int4"}, "unknown dtype 'int4'; did you mean 'int8'"),
    ],
)
def test_settings_that_there_are_not_are_told(settings, told):
    with pytest.raises(AyaError, match=told):
        LoRA(**{"rank": 2, "alpha": 4.0, **settings})


def test_experts_are_not_adapted_and_matrices_must_be_there(llama):
    config, params = llama
    mixtral = DecoderConfig.from_hf({**config.to_hf(), "model_type": "mixtral"})
    experts = jax.eval_shape(lambda: init_params(mixtral, jax.random.key(0)))
    with pytest.raises(AyaError, match="is an expert's here"):
        init_adapters(LoRA(2, 4.0), experts, jax.random.key(0))
    block = {name: leaf for name, leaf in params["layers"]["block"].items() if name != "k"}
    with pytest.raises(AyaError, match="the model has no matrix 'k'"):
        init_adapters(LoRA(2, 4.0), {"layers": {"block": block}}, jax.random.key(0))
    with pytest.raises(AyaError, match="experts have no LoRA"):
        dense(LowRank(jnp.zeros((4, 4)), jnp.zeros((4, 1)), jnp.zeros((1, 4)), 1.0), jnp.float32)


def test_a_matrix_of_another_shape_is_told(llama):
    config, params = llama
    short = jax.tree.map(lambda leaf: leaf, quantize(params))
    block = short["layers"]["block"]
    block["up"] = jax.tree.map(lambda leaf: leaf[..., :-1], block["up"])
    batch = plain_batch(jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2), bool))
    with pytest.raises(AyaError, match=r"the weight 'up' is \(24, 39\); its model says \(24, 40\)"):
        hidden_states(config, short, batch)
