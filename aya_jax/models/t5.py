"""mT5 (Aya 101): an encoder and a decoder that looks at what the encoder made of its input.

Source: arXiv 1910.10683 (T5), arXiv 2010.11934 (mT5), and huggingface/transformers
`models/mt5/modeling_mt5.py`. Attention scores are not divided by the root of the head size; a learnt
bias for each head and bucket of relative positions, shared by the layers of a stack, is added to
them.

Shapes: B batch, S input length, T target length, C cache length, D hidden, N heads, H head size,
F feed-forward, V vocabulary, L layers.
"""

import math
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aya_jax.models.decoder import Batch, Cache, Params, plain_batch
from aya_jax.models.layers import Norm, gated_mlp
from aya_jax.models.placement import placement
from aya_jax.models.remat import INPUT, named, rematerialised
from aya_jax.models.t5_config import T5Config
from aya_jax.models.weights import contract, linear, normal
from aya_jax.sharding.lookup import lookup
from aya_jax.sharding.place import spread
from aya_kernels import attention

ACTIVATION = "gelu_new"


class Memory(NamedTuple):
    """What the decoder looks at: the encoder's output [B, S, D], and its int32 segment ids [B, S]."""

    hidden: jax.Array
    segment_ids: jax.Array


class T5Cache(NamedTuple):
    """What decoding goes on from.

    Attributes:
      own: the decoder's keys and values, [L, B, C, N, H]; position p is in slot p.
      crossed: keys and values of the encoder's output, [L, B, S, N, H].
      segment_ids: int32 [B, S], 0 where the input is padding.
    """

    own: Cache
    crossed: Cache
    segment_ids: jax.Array


class Own(NamedTuple):
    """Of self-attention: the biases [N, T, C], and what each place sees, bool [B or 1, T, C]."""

    bias: jax.Array
    seen: jax.Array


def relative_buckets(
    relative: jax.Array | np.ndarray, *, bidirectional: bool, buckets: int, max_distance: int
) -> jax.Array:
    """Return the bucket of each relative position, the key's place less the query's.

    Half of the buckets are one position each, the others grow with the logarithm of the distance up
    to `max_distance`, beyond which all is in the last (arXiv 1910.10683, section 2.1). Of both
    directions each has half of the buckets; of one, keys after the query are in bucket 0.
    """
    if bidirectional:
        buckets //= 2
    exact = buckets // 2
    # In float32, as everybody works it out, so that the same distances fall on the same side.
    distances = np.maximum(np.arange(max_distance + 1), exact).astype(np.float32)
    growth = np.log(distances / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    far = exact + (growth * np.float32(buckets - exact)).astype(np.int32)
    near = np.arange(max_distance + 1)
    table = jnp.asarray(np.where(near < exact, near, np.minimum(far, buckets - 1)), jnp.int32)
    distance = jnp.abs(relative) if bidirectional else jnp.maximum(-relative, 0)
    found = table[jnp.minimum(distance, max_distance)]
    return found + buckets * (relative > 0) if bidirectional else found


def _norm(config: T5Config, name: str) -> Norm:
    return Norm("rms", (config.d_model,), ("embed",), config.layer_norm_epsilon, name=name)


def _heads(module: nn.Module, name: str, x: jax.Array, config: T5Config) -> jax.Array:
    """Return queries, keys or values [B, T, N, H] of `x`."""
    c = config
    # Scores are not scaled, so queries begin small.
    variance = c.d_model * c.d_kv if name == "q" else c.d_model
    std = c.initializer_factor * variance**-0.5
    shape, axes = (c.d_model, c.num_heads, c.d_kv), ("embed", "heads", "head")
    return linear(module, name, x, shape, axes, std)


def _out(module: nn.Module, x: jax.Array, config: T5Config) -> jax.Array:
    """Return what the heads [B, T, N, H] add to the hidden states."""
    c = config
    std = c.initializer_factor * (c.num_heads * c.d_kv) ** -0.5
    shape, axes = (c.num_heads, c.d_kv, c.d_model), ("heads", "head", "embed")
    return linear(module, "o", x, shape, axes, std, inputs=2)


def _mlp(module: nn.Module, x: jax.Array, config: T5Config) -> jax.Array:
    std = config.initializer_factor * config.d_model**-0.5
    return gated_mlp(module, x, config.d_ff, activation=ACTIVATION, stddev=std)


def _attend(q: jax.Array, key: jax.Array, value: jax.Array, own: Own) -> jax.Array:
    """Return [B, T, N, H]: attention with biases, its softmax in float32."""
    scores = jnp.einsum("btnh,bcnh->bntc", q, key, preferred_element_type=jnp.float32)
    scores = jnp.where(own.seen[:, None], scores + own.bias, -1e30)
    shares = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bntc,bcnh->btnh", shares, value)


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, a norm before each."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, own: Own) -> tuple[jax.Array, None]:
        c = self.config
        x = named(spread(x, "batch", "length", None), INPUT)
        normed = _norm(c, "input_norm")(x)
        q, key, value = (_heads(self, name, normed, c) for name in "qkv")
        x = x + _out(self, _attend(q, key, value, own), c)
        return x + _mlp(self, _norm(c, "mlp_norm")(x), c), None


class CrossAttention(nn.Module):
    """Attention of the decoder's places to the encoder's output, without biases.

    `crossed` are the keys and values of `memory.hidden`, worked out here if absent.
    """

    config: T5Config

    @nn.compact
    def __call__(
        self, x: jax.Array, segment_ids: jax.Array, memory: Memory, crossed: Cache | None
    ) -> jax.Array:
        c = self.config
        q = _heads(self, "q", x, c)
        if crossed is None:
            crossed = Cache(*(_heads(self, name, memory.hidden, c) for name in "kv"))
        ids, place = (segment_ids, memory.segment_ids), placement(len(q))
        out = attention(q, *crossed, causal=False, segment_ids=ids, scale=1.0, placement=place)
        return _out(self, out, c)


class DecoderBlock(nn.Module):
    """Self-attention, attention to the encoder's output, and feed-forward, a norm before each.

    `cached` is the layer's part of the cache: its own keys and values, and the crossed ones.
    """

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cached: tuple[Cache, Cache] | None,
        batch: Batch,
        own: Own,
        memory: Memory,
    ) -> tuple[jax.Array, Cache | None]:
        c = self.config
        x = named(spread(x, "batch", "length", None), INPUT)
        normed = _norm(c, "input_norm")(x)
        q, key, value = (_heads(self, name, normed, c) for name in "qkv")
        new, crossed = None, None
        if cached is not None:
            (keys, values), crossed = cached
            place = (0, batch.positions[0, 0], 0, 0)
            key = jax.lax.dynamic_update_slice(keys, key, place)
            value = jax.lax.dynamic_update_slice(values, value, place)
            new = Cache(key, value)
        x = x + _out(self, _attend(q, key, value, own), c)
        cross = CrossAttention(c, name="cross")
        x = x + cross(_norm(c, "cross_norm")(x), batch.segment_ids, memory, crossed)
        return x + _mlp(self, _norm(c, "mlp_norm")(x), c), new


def _scanned(block: type[nn.Module], layers: int, in_axes: tuple[Any, ...], remat: str) -> Any:
    return nn.scan(
        rematerialised(block, remat),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def _own(
    module: nn.Module, config: T5Config, batch: Batch, cache: T5Cache | None, *, bidirectional: bool
) -> Own:
    """Return the biases and what is seen; the table of biases is a parameter of `module`.

    Places are those in the row: packed documents lie whole, and only differences count.
    """
    c = config
    init = normal((None, "heads"), c.initializer_factor * c.d_model**-0.5)
    shape = (c.relative_attention_num_buckets, c.num_heads)
    table = jnp.asarray(module.param("relative_bias", init, shape, jnp.float32), jnp.float32)
    if cache is None:
        queries = keys = jnp.arange(batch.tokens.shape[1])
    else:
        queries, keys = batch.positions[0], jnp.arange(cache.own.keys.shape[2])
    relative = keys - queries[:, None]
    buckets = relative_buckets(
        relative,
        bidirectional=bidirectional,
        buckets=c.relative_attention_num_buckets,
        max_distance=c.relative_attention_max_distance,
    )
    seen = jnp.ones_like(relative, bool) if bidirectional else relative <= 0
    seen = seen[None]
    if cache is None:
        ids = batch.segment_ids
        seen = seen & (ids[:, :, None] == ids[:, None]) & (ids > 0)[:, None]
    return Own(table[buckets].transpose(2, 0, 1), seen)


class Encoder(nn.Module):
    """Scanned blocks and the final norm, [B, S, D] to [B, S, D]."""

    config: T5Config
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Batch) -> jax.Array:
        c = self.config
        own = _own(self, c, inputs, None, bidirectional=True)
        blocks = _scanned(EncoderBlock, c.num_layers, (nn.broadcast,), self.remat)
        x, _ = blocks(c, name="layers")(x, own)
        return _norm(c, "final_norm")(x)


class Decoder(nn.Module):
    """Scanned blocks and the final norm, [B, T, D] to [B, T, D], and with a cache the new one."""

    config: T5Config
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: jax.Array, targets: Batch, memory: Memory, cache: T5Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        c = self.config
        own = _own(self, c, targets, cache, bidirectional=False)
        axes = (0, nn.broadcast, nn.broadcast, nn.broadcast)
        blocks = _scanned(DecoderBlock, c.num_decoder_layers, axes, self.remat)
        cached = None if cache is None else (cache.own, cache.crossed)
        x, new = blocks(c, name="layers")(x, cached, targets, own, memory)
        return _norm(c, "final_norm")(x), new


class T5(nn.Module):
    """The embedding, both stacks and the output embedding (used by `heads`)."""

    config: T5Config
    dtype: Any = jnp.float32
    remat: str = "none"

    def setup(self) -> None:
        c = self.config
        init = normal(("vocab", "embed"), c.initializer_factor)
        for name in ("embedding", "output"):
            setattr(self, name, self.param(name, init, (c.vocab_size, c.d_model), jnp.float32))
        self.encoder = Encoder(c, self.remat)
        self.decoder = Decoder(c, self.remat)

    def __call__(self, inputs: Batch, targets: Batch) -> jax.Array:
        return self.decode(targets, self.encode(inputs))[0]

    def encode(self, inputs: Batch) -> Memory:
        """Return what the encoder makes of its input."""
        return Memory(self.encoder(self._embed(inputs), inputs), inputs.segment_ids)

    def decode(
        self, targets: Batch, memory: Memory, cache: T5Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Return the decoder's hidden states, and with `cache` its new keys and values."""
        return self.decoder(self._embed(targets), targets, memory, cache)

    def _embed(self, batch: Batch) -> jax.Array:
        return spread(lookup(self.embedding, batch.tokens, self.dtype), "batch", "length", None)


def _example() -> tuple[Batch, Batch]:
    batch = plain_batch(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
    return batch, batch


def init_params(config: T5Config, key: jax.Array) -> Params:
    """Return fresh float32 parameters; the leaves of a stack's layers have a first axis of length L.

    Embeddings are drawn from N(0, initializer_factor); matrices from that over the root of the number
    of their inputs (`down`, of the hidden size), those of queries of the head size besides.
    """
    return nn.meta.unbox(T5(config).init(key, *_example())["params"])


def logical_axes(config: T5Config) -> Params:
    """Return the logical axes of every parameter, a `PartitionSpec` a leaf."""
    abstract = jax.eval_shape(T5(config).init, jax.random.key(0), *_example())
    return nn.get_partition_spec(abstract)["params"]


def hidden_states(
    config: T5Config,
    params: Params,
    inputs: Batch,
    targets: Batch,
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
) -> jax.Array:
    """Return the decoder's final hidden states [B, T, D].

    Args:
      config, params: the model.
      inputs: what the encoder reads, [B, S]; padded on either side.
      targets: what the decoder goes on from, [B, T]: a document begins with `decoder_start_token_id`,
        and sees the input whose segment id is its own.
      dtype: of the activations and the result.
      remat: what is kept for the backward pass, a key of `remat.POLICIES`.
    """
    return cast(jax.Array, T5(config, dtype, remat).apply({"params": params}, inputs, targets))


def prefill(
    config: T5Config, params: Params, inputs: Batch, *, slots: int, dtype: Any = jnp.float32
) -> T5Cache:
    """Return the cache of inputs, one a row and padded on either side, with nothing decoded yet.

    Args:
      config, params: the model.
      inputs: see `plain_batch`.
      slots: of the cache, one a target's token, the first included.
      dtype: of the activations and the cache.
    """
    c = config
    memory = cast(Memory, T5(c, dtype).apply({"params": params}, inputs, method="encode"))
    cross = params["decoder"]["layers"]["cross"]
    crossed = Cache(*(jax.vmap(partial(contract, memory.hidden))(cross[name]) for name in "kv"))
    shape = (c.num_decoder_layers, len(inputs.tokens), slots, c.num_heads, c.d_kv)
    empty = jnp.zeros(shape, memory.hidden.dtype)
    return T5Cache(Cache(empty, empty), crossed, inputs.segment_ids)


def decode_step(
    config: T5Config,
    params: Params,
    cache: T5Cache,
    tokens_B: jax.Array,
    position: jax.Array | int,
    *,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, T5Cache]:
    """Write one token a row at `position` and return its hidden state [B, D] and the cache.

    All rows are at one position: they begin together, with `decoder_start_token_id` at 0.
    """
    tokens = tokens_B[:, None]
    batch = Batch(tokens, jnp.full_like(tokens, position), jnp.ones_like(tokens))
    # The keys and values of what the encoder made are in the cache; itself it is not needed again.
    memory = Memory(jnp.zeros(()), cache.segment_ids)
    module = T5(config, dtype)
    hidden, own = module.apply({"params": params}, batch, memory, cache, method="decode")
    return hidden[:, 0], cache._replace(own=cast(Cache, own))
