"""The decoder of every family but mT5: blocks of attention and feed-forward, scanned over the layers.

What differs between the families is in `families.py` and `config.py`. Source of the architectures:
huggingface/transformers `models/<model_type>/modeling_<model_type>.py`.

Shapes: B batch, T query length, S cache length, D hidden, N query heads, K key heads, H head size,
F feed-forward, V vocabulary, L layers.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aya_jax.models.config import DecoderConfig
from aya_jax.models.layers import Norm, experts_mlp, gated_mlp
from aya_jax.models.placement import placement
from aya_jax.models.remat import INPUT, named, rematerialised
from aya_jax.models.rotary import rope_angles, rotate
from aya_jax.models.weights import constant, linear, normal
from aya_jax.sharding.lookup import lookup
from aya_jax.sharding.place import spread
from aya_kernels import attention, decode_attention

Params = dict[str, Any]

# Stands for "sees all positions" where layers differ: more than any context, and safe to add to.
EVERYTHING = 1 << 30


class Batch(NamedTuple):
    """Tokens with their places; every array is int32 [B, T].

    `segment_ids` tells packed documents apart, 0 is padding; `positions` restart in each document.
    """

    tokens: jax.Array
    positions: jax.Array
    segment_ids: jax.Array


class Cache(NamedTuple):
    """Keys and values of every layer, [L, B, S, K, H]; position p of a row is in slot p % S."""

    keys: jax.Array
    values: jax.Array


class Shared(NamedTuple):
    """What all layers get: the batch, and sines and cosines of its positions [B, T, 1, H / 2]."""

    batch: Batch
    sines: jax.Array
    cosines: jax.Array


class Kind(NamedTuple):
    """What a layer is where layers differ: the positions it sees, and whether it has a rotation."""

    window: jax.Array
    rotary: jax.Array


class Block(nn.Module):
    """One layer; its part of the cache travels through the scan.

    `kind` is None where all layers are alike, and see `config.windows[0]` positions.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, cache: Cache | None, kind: Kind | None, shared: Shared
    ) -> tuple[jax.Array, Cache]:
        block = self.config.family.block
        # Without being told, XLA may keep whole batches on every device.
        x_BTD = named(spread(x_BTD, "batch", "length", None), INPUT)
        normed = self._norm("input_norm")(x_BTD)
        attended, new_cache = self._attention(normed, cache, kind, shared)
        if block == "parallel":
            return x_BTD + attended + self._mlp(normed), new_cache
        if block == "sequential":
            x_BTD = x_BTD + attended
            return x_BTD + self._mlp(self._norm("mlp_norm")(x_BTD)), new_cache
        x_BTD = x_BTD + self._norm("attention_out_norm")(attended)
        fed = self._mlp(self._norm("mlp_norm")(x_BTD))
        return x_BTD + self._norm("mlp_out_norm")(fed), new_cache

    def _norm(self, name: str) -> Norm:
        c = self.config
        return Norm(c.family.norm, (c.hidden_size,), ("embed",), c.norm_eps, name=name)

    def _attention(
        self, normed: jax.Array, cache: Cache | None, kind: Kind | None, shared: Shared
    ) -> tuple[jax.Array, Cache]:
        c, batch, std = self.config, shared.batch, self.config.initializer_range
        d, n, k, h = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
        bias = c.attention_bias or c.family.query_bias
        q = linear(self, "q", normed, (d, n, h), ("embed", "heads", "head"), std, bias=bias)
        key = linear(self, "k", normed, (d, k, h), ("embed", "kv", "head"), std, bias=bias)
        value = linear(self, "v", normed, (d, k, h), ("embed", "kv", "head"), std, bias=bias)
        if c.use_qk_norm:
            q, key = self._head_norm("q_norm", "heads", q), self._head_norm("k_norm", "kv", key)
        sines, cosines = shared.sines, shared.cosines
        if kind is not None and not c.family.rotary_everywhere:
            sines, cosines = (
                jnp.where(kind.rotary, sines, 0.0),
                jnp.where(kind.rotary, cosines, 1.0),
            )
        q = rotate(q, sines, cosines, interleaved=c.family.interleaved)
        key = rotate(key, sines, cosines, interleaved=c.family.interleaved)
        q, key, value = (named(x, "qkv") for x in (q, key, value))
        window = c.windows[0] if kind is None else kind.window
        options: dict[str, Any] = {"softcap": c.attn_logit_softcapping, "scale": c.attention_scale}
        if cache is None:
            ids = (batch.segment_ids, batch.segment_ids)
            options |= {"window": window, "placement": placement(len(q))}
            out = attention(q, key, value, causal=True, segment_ids=ids, **options)
            new_cache = Cache(key, value)
        else:
            out, new_cache = self._cached(q, key, value, cache, window, batch.positions, options)
        shape, axes = (n, h, d), ("heads", "head", "embed")
        out = linear(self, "o", out, shape, axes, std, inputs=2, bias=c.attention_bias)
        return named(out, "attention_out"), new_cache

    def _head_norm(self, name: str, axis: str, x: jax.Array) -> jax.Array:
        """Cohere has a weight for each head, Qwen one for all of them."""
        c = self.config
        own = c.family.norm == "layer"
        shape, axes = (x.shape[-2:], (axis, "head")) if own else (x.shape[-1:], ("head",))
        return Norm(c.family.norm, shape, axes, c.norm_eps, name=name)(x)

    def _cached(
        self,
        q: jax.Array,
        key: jax.Array,
        value: jax.Array,
        cache: Cache,
        window: int | jax.Array | None,
        positions: jax.Array,
        options: dict[str, Any],
    ) -> tuple[jax.Array, Cache]:
        """Write one token a row into the cache and attend to what is in it."""
        size, place = cache.keys.shape[1], positions[:, 0]
        rows, slots = jnp.arange(len(place)), place % size
        new = Cache(
            cache.keys.at[rows, slots].set(key[:, 0]), cache.values.at[rows, slots].set(value[:, 0])
        )
        # A ring of `window` slots holds just what may be seen.
        lengths = jnp.minimum(place + 1, size)
        if isinstance(window, int) and size <= window:
            window = None
        options |= {"window": window, "placement": placement(len(q))}
        out = decode_attention(q[:, 0], new.keys, new.values, lengths, **options)
        return out[:, None], new

    def _mlp(self, normed: jax.Array) -> jax.Array:
        c = self.config
        if c.num_local_experts:
            return experts_mlp(
                self,
                normed,
                c.intermediate_size,
                experts=c.num_local_experts,
                chosen=c.num_experts_per_tok,
                activation=c.hidden_act,
                stddev=c.initializer_range,
            )
        return gated_mlp(
            self,
            normed,
            c.intermediate_size,
            activation=c.hidden_act,
            stddev=c.initializer_range,
            bias=c.mlp_bias,
        )


def _kinds(config: DecoderConfig) -> Kind | None:
    """Return what each layer is, [L] each, or None where all are alike."""
    windows = config.windows
    if len(set(windows)) == 1 and (config.family.rotary_everywhere or windows[0] is not None):
        return None
    seen = np.array([EVERYTHING if w is None else w for w in windows], np.int32)
    return Kind(jnp.asarray(seen), jnp.asarray([w is not None for w in windows]))


class Decoder(nn.Module):
    """Embedding, scanned blocks and the final norm: tokens [B, T] to hidden states [B, T, D].

    `keep_cache` returns each layer's keys and values; `reward_head` adds the weights of a scalar
    head (used by `heads.rewards`) in place of an output embedding.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    keep_cache: bool = False
    remat: str = "none"
    reward_head: bool = False

    @nn.compact
    def __call__(self, batch: Batch, cache: Cache | None = None) -> tuple[jax.Array, Cache | None]:
        c = self.config
        shape = (c.vocab_size, c.hidden_size)
        init = normal(("vocab", "embed"), c.initializer_range)
        embedding = self.param("embedding", init, shape, jnp.float32)
        if self.reward_head:
            self.param("score", constant(("embed",), 0.0), (c.hidden_size,), jnp.float32)
        elif not c.tie_word_embeddings and self.is_initializing():
            self.param("output", init, shape, jnp.float32)
        if c.family.norm == "gemma":
            x = lookup(embedding, batch.tokens, jnp.float32) * c.hidden_size**0.5
            x = x.astype(self.dtype)
        else:
            x = lookup(embedding, batch.tokens, self.dtype)
        keep = self.keep_cache or cache is not None

        class Layer(nn.Module):
            """One scanned layer: drops the cache where nobody asked for it."""

            config: DecoderConfig

            @nn.compact
            def __call__(
                self, x: jax.Array, cache: Cache | None, kind: Kind | None, shared: Shared
            ) -> tuple[jax.Array, Cache | None]:
                x, new_cache = Block(self.config, name="block")(x, cache, kind, shared)
                return x, new_cache if keep else None

        layer = rematerialised(Layer, self.remat)
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast),
            length=c.num_hidden_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, name="layers")
        angles = rope_angles(batch.positions, c.head_dim, c.rope_theta, c.rope_scaling)
        x, new_cache = layers(x, cache, _kinds(c), Shared(batch, *angles))
        norm = Norm(c.family.norm, (c.hidden_size,), ("embed",), c.norm_eps, name="final_norm")
        return norm(spread(x, "batch", "length", None)), new_cache


def plain_batch(tokens_BT: jax.Array, mask_BT: jax.Array) -> Batch:
    """Return the `Batch` of one document a row, padded on either side.

    Args:
      tokens_BT: int32 [B, T].
      mask_BT: bool [B, T], True on real tokens.
    """
    real = jnp.asarray(mask_BT).astype(jnp.int32)
    return Batch(jnp.asarray(tokens_BT), jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0), real)


def init_params(config: DecoderConfig, key: jax.Array, *, reward_head: bool = False) -> Params:
    """Return fresh float32 parameters, the padding row of the embedding zeroed.

    Weights are drawn from N(0, initializer_range), norms multiply by one, biases are zeros;
    `reward_head` adds a leaf `score` [D] of zeros. The leaves of the layers are stacked on a first
    axis of length L.
    """
    batch = plain_batch(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
    module = Decoder(config, reward_head=reward_head)
    params = nn.meta.unbox(module.init(key, batch)["params"])
    if config.pad_token_id is not None:
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
    remat: str = "none",
) -> jax.Array:
    """Return the final hidden states [B, T, D].

    Args:
      config, params: the model.
      batch: see `Batch`; padding comes out as some finite value that nobody should read.
      dtype: of the activations and the result.
      remat: what is kept for the backward pass, a key of `remat.POLICIES`.
    """
    return Decoder(config, dtype, remat=remat).apply({"params": _body(params)}, batch)[0]


def cache_size(config: DecoderConfig, positions: int) -> int:
    """Return the slots that a cache needs for `positions` positions of a row.

    Where every layer has a window, a ring of that many slots is enough.
    """
    windows = [window for window in config.windows if window is not None]
    every = len(windows) == config.num_hidden_layers
    return min(positions, max(windows)) if every else positions


def prefill(
    config: DecoderConfig, params: Params, batch: Batch, *, slots: int, dtype: Any = jnp.float32
) -> tuple[jax.Array, Cache]:
    """Return hidden states [B, T, D] and the cache [L, B, slots, K, H] of prompts.

    Args:
      config, params: the model.
      batch: one prompt a row, padded on either side (`plain_batch`).
      slots: of the cache, as `cache_size` counts them.
      dtype: of the activations and the cache.
    """
    module = Decoder(config, dtype, keep_cache=True)
    hidden, made = module.apply({"params": _body(params)}, batch)
    # Slot s takes the last position p of its row with p % slots == s; one that has none yet is
    # filled with anything, as nobody looks at it.
    real = batch.segment_ids > 0
    lengths, first = real.sum(1)[:, None], real.argmax(1)[:, None]
    slot = jnp.arange(slots)
    place = first + slot + jnp.maximum(lengths - 1 - slot, 0) // slots * slots
    place = jnp.minimum(place, batch.tokens.shape[1] - 1)[None, :, :, None, None]
    slotted = (jnp.take_along_axis(part, place, axis=2) for part in cast(Cache, made))
    return hidden, Cache(*(spread(part, "layers", "batch", None, "kv", None) for part in slotted))


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

    A row's positions must come one after the other, from the first after its prompt.
    """
    batch = Batch(tokens_B[:, None], positions_B[:, None], jnp.ones_like(tokens_B)[:, None])
    hidden, filled = Decoder(config, dtype).apply({"params": _body(params)}, batch, cache)
    return hidden[:, 0], cast(Cache, filled)


def _body(params: Params) -> Params:
    return {name: leaf for name, leaf in params.items() if name not in ("score", "output")}
