"""The Cohere decoder: parallel blocks over one bias-free LayerNorm, scanned over the layers.

Source of the architecture: huggingface/transformers `models/cohere/modeling_cohere.py`.

Shapes: B batch, T query length, S cache length, D hidden, N query heads, K key heads, H head size,
F feed-forward, V vocabulary, L layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from aya_jax.models.config import DecoderConfig
from aya_kernels import attention, decode_attention

Params = dict[str, Any]


class Batch(NamedTuple):
    """Tokens with their places; every array is int32 [B, T].

    `segment_ids` tells packed documents apart, 0 is padding; `positions` restart in each document.
    """

    tokens: jax.Array
    positions: jax.Array
    segment_ids: jax.Array


class Cache(NamedTuple):
    """Keys and values of every layer, [L, B, S, K, H], rows filled from the left."""

    keys: jax.Array
    values: jax.Array


def _kernel(axes: tuple[str, ...], stddev: float) -> Callable[..., Any]:
    return nn.with_logical_partitioning(nn.initializers.normal(stddev), axes)


class LayerNorm(nn.Module):
    """Mean-subtracting norm with a weight and no bias, in float32, over the last axis of `shape`."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), self.axes)
        weight = self.param("weight", init, self.shape, jnp.float32)
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + self.epsilon)
        return (jnp.asarray(weight, jnp.float32) * centred * scale).astype(x.dtype)


def rotary(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """Rotate interleaved pairs (2i, 2i+1) by `position * theta**(-2i/H)`, in float32.

    Returns [B, T, N, H] in the dtype of `x`; positions are int32 [B, T].

    Source: RoFormer (arXiv 2104.09864, equation 34), in the interleaved (GPT-J) layout of Cohere.
    """
    head_dim = x_BTNH.shape[-1]
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions_BT.astype(jnp.float32)[..., None, None] * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    pairs = x_BTNH.astype(jnp.float32).reshape(*x_BTNH.shape[:-1], head_dim // 2, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return rotated.reshape(x_BTNH.shape).astype(x_BTNH.dtype)


class Block(nn.Module):
    """`x + attention(norm(x)) + mlp(norm(x))`; the cache of the layer travels through the scan."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, cache: Cache | None, batch: Batch
    ) -> tuple[jax.Array, Cache]:
        c = self.config
        d, n, k, h = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
        dtype = x_BTD.dtype

        def weight(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
            init = _kernel(axes, c.initializer_range)
            return self.param(name, init, shape, jnp.float32).astype(dtype)

        normed = LayerNorm((d,), ("embed",), c.layer_norm_eps, name="input_norm")(x_BTD)
        q = jnp.einsum("btd,dnh->btnh", normed, weight("q", (d, n, h), ("embed", "heads", "head")))
        key = jnp.einsum("btd,dkh->btkh", normed, weight("k", (d, k, h), ("embed", "kv", "head")))
        value = jnp.einsum("btd,dkh->btkh", normed, weight("v", (d, k, h), ("embed", "kv", "head")))
        if c.use_qk_norm:
            q = LayerNorm((n, h), ("heads", "head"), c.layer_norm_eps, name="q_norm")(q)
            key = LayerNorm((k, h), ("kv", "head"), c.layer_norm_eps, name="k_norm")(key)
        q = rotary(q, batch.positions, c.rope_theta)
        key = rotary(key, batch.positions, c.rope_theta)
        if cache is None:
            attended = attention(
                q, key, value, causal=True, segment_ids=(batch.segment_ids, batch.segment_ids)
            )
            new_cache = Cache(key, value)
        else:
            rows, slots = jnp.arange(x_BTD.shape[0]), batch.positions[:, 0]
            new_cache = Cache(
                cache.keys.at[rows, slots].set(key[:, 0]),
                cache.values.at[rows, slots].set(value[:, 0]),
            )
            attended = decode_attention(q[:, 0], new_cache.keys, new_cache.values, slots + 1)[
                :, None
            ]
        out = jnp.einsum(
            "btnh,nhd->btd", attended, weight("o", (n, h, d), ("heads", "head", "embed"))
        )
        f = c.intermediate_size
        gate = normed @ weight("gate", (d, f), ("embed", "mlp"))
        up = normed @ weight("up", (d, f), ("embed", "mlp"))
        mlp = (nn.silu(gate) * up) @ weight("down", (f, d), ("mlp", "embed"))
        return x_BTD + out + mlp, new_cache


class Decoder(nn.Module):
    """Embedding, scanned blocks and the final norm: tokens [B, T] to hidden states [B, T, D].

    `keep_cache` returns each layer's keys and values; `reward_head` adds the weights of a scalar
    head (used by `heads.rewards`) beside the decoder's.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    keep_cache: bool = False
    remat: bool = False
    reward_head: bool = False

    @nn.compact
    def __call__(self, batch: Batch, cache: Cache | None = None) -> tuple[jax.Array, Cache | None]:
        c = self.config
        embedding = self.param(
            "embedding",
            _kernel(("vocab", "embed"), c.initializer_range),
            (c.vocab_size, c.hidden_size),
            jnp.float32,
        )
        if self.reward_head:
            init = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("embed",))
            self.param("score", init, (c.hidden_size,), jnp.float32)
        x = embedding[batch.tokens].astype(self.dtype)
        keep = self.keep_cache or cache is not None

        class Layer(nn.Module):
            """One scanned layer: drops the cache where nobody asked for it."""

            config: DecoderConfig

            @nn.compact
            def __call__(
                self, x: jax.Array, cache: Cache | None, batch: Batch
            ) -> tuple[jax.Array, Cache | None]:
                x, new_cache = Block(self.config, name="block")(x, cache, batch)
                return x, new_cache if keep else None

        layer = nn.remat(Layer, prevent_cse=False) if self.remat else Layer
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=c.num_hidden_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, name="layers")
        x, new_cache = layers(x, cache, batch)
        return LayerNorm((c.hidden_size,), ("embed",), c.layer_norm_eps, name="final_norm")(
            x
        ), new_cache


def plain_batch(tokens_BT: jax.Array, mask_BT: jax.Array) -> Batch:
    """Return the `Batch` of one right-padded document a row.

    Args:
      tokens_BT: int32 [B, T].
      mask_BT: bool [B, T], True on real tokens.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    return Batch(tokens_BT, positions, mask_BT.astype(jnp.int32))


def init_params(config: DecoderConfig, key: jax.Array, *, reward_head: bool = False) -> Params:
    """Return fresh float32 parameters, the padding row of the embedding zeroed.

    Weights are drawn from N(0, initializer_range), norms are ones; `reward_head` adds a leaf
    `score` [D] of zeros. The leaves of the layers are stacked on a first axis of length L.
    """
    batch = plain_batch(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
    module = Decoder(config, reward_head=reward_head)
    params = nn.meta.unbox(module.init(key, batch)["params"])
    params["embedding"] = params["embedding"].at[config.pad_token_id].set(0.0)
    return params


def logical_axes(config: DecoderConfig, *, reward_head: bool = False) -> Params:
    """Return the logical axes of every parameter, a `PartitionSpec` a leaf."""
    batch = plain_batch(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
    module = Decoder(config, reward_head=reward_head)
    abstract = jax.eval_shape(module.init, jax.random.key(0), batch)
    return nn.get_partition_spec(abstract)["params"]


def hidden_states(
    config: DecoderConfig,
    params: Params,
    batch: Batch,
    *,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> jax.Array:
    """Return the final hidden states [B, T, D].

    Args:
      config, params: the model.
      batch: see `Batch`; padding comes out as some finite value that nobody should read.
      dtype: of the activations and the result.
      remat: whether the backward pass makes each layer's activations again.
    """
    return Decoder(config, dtype, remat=remat).apply({"params": _body(params)}, batch)[0]


def prefill(
    config: DecoderConfig, params: Params, batch: Batch, *, dtype: Any = jnp.float32
) -> tuple[jax.Array, Cache]:
    """Return hidden states [B, T, D] and the cache [L, B, T, K, H] of right-padded prompts."""
    hidden, cache = Decoder(config, dtype, keep_cache=True).apply({"params": _body(params)}, batch)
    return hidden, cast(Cache, cache)


def decode_step(
    config: DecoderConfig,
    params: Params,
    cache: Cache,
    tokens_B: jax.Array,
    positions_B: jax.Array,
    *,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, Cache]:
    """Write one token a row at `positions` [B] and return its hidden state [B, D] and the cache.

    Row `b` attends to slots 0 .. positions[b], so a row's prompt must fill its slots from 0.
    """
    batch = Batch(tokens_B[:, None], positions_B[:, None], jnp.ones_like(tokens_B)[:, None])
    hidden, filled = Decoder(config, dtype).apply({"params": _body(params)}, batch, cache)
    return hidden[:, 0], cast(Cache, filled)


def _body(params: Params) -> Params:
    return {name: leaf for name, leaf in params.items() if name != "score"}
