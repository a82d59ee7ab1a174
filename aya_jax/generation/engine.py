"""Batched sampling. A completion depends on (prompt, model, seed, sample index) and nothing else.

Each row has a random key of its own, made of the seed, the prompt's tokens and the sample index, and
every batch has the same number of rows, so who shares a batch changes nothing.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.errors import AyaError
from aya_jax.model import Model
from aya_jax.models.architecture import ModelConfig, continue_decoding, start_decoding
from aya_jax.models.decoder import Params
from aya_jax.models.heads import logits
from aya_jax.sharding.programs import dividing_length, filled_up


def choose(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    temperature: jax.Array,
    *,
    top_k: int | None,
    top_p: float | None,
) -> jax.Array:
    """Return one token a row, int32 [B]: the best at temperature 0, else a sample.

    `top_k` keeps the k best, `top_p` the smallest set whose probability reaches it
    (nucleus sampling, arXiv 1904.09751).

    Args:
      logits_BV: float32 [B, V].
      keys_B: a random key a row.
      temperature: a scalar; logits are divided by it.
      top_k, top_p: None keeps every token. With both, `top_p` is taken of what `top_k` left.
    """
    scaled = logits_BV / jnp.maximum(temperature, 1e-6)
    if top_k is not None:
        kth = jax.lax.top_k(scaled, min(top_k, scaled.shape[-1]))[0][:, -1:]
        scaled = jnp.where(scaled < kth, -jnp.inf, scaled)
    if top_p is not None:
        ordered = -jnp.sort(-scaled, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        scaled = jnp.where(scaled < least, -jnp.inf, scaled)
    sampled = jax.vmap(jax.random.categorical)(keys_B, scaled)
    return jnp.where(temperature > 0, sampled, logits_BV.argmax(-1)).astype(jnp.int32)


def decode(
    config: ModelConfig,
    params: Params,
    rows: Mapping[str, jax.Array],
    numbers: Mapping[str, jax.Array],
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    greedy: bool,
    top_k: int | None,
    top_p: float | None,
) -> jax.Array:
    """Return int32 [B, max_new_tokens], each row closed by one of `stop_ids`, then filled.

    Args:
      config, params: the model.
      rows: `tokens` int32 [B, P], `lengths` int32 [B] and `seeds` uint32 [B, 2]. A row of length 0 is
        empty.
      numbers: `seed` and `temperature`.
      max_new_tokens, greedy, top_k, top_p: as `sample` has them.
      stop_ids: what ends a completion.
    """
    tokens_BP, lengths_B, seeds_B2 = rows["tokens"], rows["lengths"], rows["seeds"]
    base = jax.random.key(numbers["seed"])
    keys_B = jax.vmap(lambda s: jax.random.fold_in(jax.random.fold_in(base, s[0]), s[1]))(seeds_B2)
    hidden, cache = start_decoding(config, params, tokens_BP, lengths_B, new=max_new_tokens)

    def pick(hidden_BD: jax.Array, index: jax.Array) -> jax.Array:
        scores = logits(config, params, hidden_BD)
        if greedy:
            return scores.argmax(-1).astype(jnp.int32)
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, index)
        return choose(scores, keys, numbers["temperature"], top_k=top_k, top_p=top_p)

    def unfinished(carry: Any) -> jax.Array:
        index, _, _, _, done = carry
        return (index < max_new_tokens) & ~done.all()

    def advance(carry: Any) -> Any:
        index, out, cache, hidden, done = carry
        token = jnp.where(done, stop_ids[0], pick(hidden, index))
        out = out.at[:, index].set(token)
        done = done | jnp.isin(token, jnp.asarray(stop_ids))
        hidden, cache = continue_decoding(config, params, cache, token, lengths_B, index)
        return index + 1, out, cache, hidden, done

    out = jnp.full((len(lengths_B), max_new_tokens), stop_ids[0], jnp.int32)
    start = (jnp.int32(0), out, cache, hidden, lengths_B == 0)
    return jax.lax.while_loop(unfinished, advance, start)[1]


def _prompt_key(ids: Sequence[int]) -> int:
    return int.from_bytes(hashlib.sha256(np.asarray(ids, np.int32).tobytes()).digest()[:4], "big")


@gin.configurable(denylist=["model", "conversations"])
def sample(
    model: Model,
    conversations: Sequence[Sequence[Mapping[str, str]]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    prompt_multiple: int = 32,
) -> list[list[str]]:
    """Return `samples` completions of each conversation, in order, in all processes.

    Args:
      model: a language model. It runs where it is: on a mesh rows and the cache of each are split over
        the devices.
      conversations: lists of messages, each to be answered by the assistant.
      max_new_tokens: the longest completion.
      temperature: 0 takes the likeliest token, 1 samples from the model.
      top_k, top_p: see `choose`.
      samples: completions a prompt, told apart by their index.
      seed: of the sampling.
      batch_size: rows decoded together, more where so many do not divide over the mesh; changes speed
        only.
      prompt_multiple: prompts are padded to a multiple of this many tokens, so that few programs
        are compiled.

    Raises:
      AyaError: a prompt leaves no room in the context, or a setting has a value without meaning.
    """
    for name, value, fits, wanted in (
        ("max_new_tokens", max_new_tokens, max_new_tokens > 0, "at least 1"),
        ("temperature", temperature, temperature >= 0, "0 or more"),
        ("top_k", top_k, top_k is None or top_k > 0, "at least 1"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1"),
        ("samples", samples, samples > 0, "at least 1"),
        ("batch_size", batch_size, batch_size > 0, "at least 1"),
        ("prompt_multiple", prompt_multiple, prompt_multiple > 0, "at least 1"),
    ):
        if not fits:
            raise AyaError(f"sample.{name} is {value}; it must be {wanted}")
    config, tokenizer = model.config, model.tokenizer
    # What the model's files call an end, and the end of a turn in its chat template.
    stop_ids = tuple(dict.fromkeys((tokenizer.eos_id, *tokenizer.stop_ids, *config.stop_ids)))
    jobs: list[tuple[int, int, list[int]]] = []
    for i, messages in enumerate(conversations):
        ids = tokenizer.encode_chat(messages)
        if len(ids) + max_new_tokens > config.max_position_embeddings:
            raise AyaError(
                f"prompt {i + 1} has {len(ids)} tokens; with {max_new_tokens} new ones it exceeds "
                f"the context of {config.max_position_embeddings}; shorten it or lower max_new_tokens"
            )
        jobs.extend((i, s, ids) for s in range(samples))
    texts: list[list[str]] = [[""] * samples for _ in conversations]
    size = filled_up(batch_size, model.place)
    multiple = dividing_length(prompt_multiple, model.place)
    numbers = {"seed": np.int32(seed), "temperature": np.float32(temperature)}
    for width, batch in _batches(jobs, size, multiple):
        rows = {
            "tokens": np.zeros((size, width), np.int32),
            "lengths": np.zeros(size, np.int32),
            "seeds": np.zeros((size, 2), np.uint32),
        }
        for row, (_, s, ids) in enumerate(batch):
            rows["tokens"][row, : len(ids)], rows["lengths"][row] = ids, len(ids)
            rows["seeds"][row] = _prompt_key(ids), s
        out = model.run(
            decode,
            rows,
            numbers,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
            greedy=temperature == 0,
            top_k=top_k,
            top_p=top_p,
        )
        for row, (i, s, _) in enumerate(batch):
            ids = out[row].tolist()
            stop = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
            texts[i][s] = tokenizer.decode(ids[:stop]).strip()
    return texts


def _batches(
    jobs: Sequence[tuple[int, int, list[int]]], size: int, multiple: int
) -> Iterator[tuple[int, Sequence[tuple[int, int, list[int]]]]]:
    """Yield (padded width, jobs); the width of a prompt follows from its own length alone."""
    widths: dict[int, list[tuple[int, int, list[int]]]] = {}
    for job in jobs:
        widths.setdefault(-(-len(job[2]) // multiple) * multiple, []).append(job)
    for width in sorted(widths):
        same = widths[width]
        for start in range(0, len(same), size):
            yield width, same[start : start + size]
