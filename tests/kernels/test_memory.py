"""Compiled programs hold nothing of the size of the scores or the logits."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from benchmarks.compiled import largest_array

import aya_kernels


def compiled(run: Any, *shapes: Any) -> Any:
    return jax.jit(run).lower(*shapes).compile()


def attention_step(backend: str, tokens: int, **options: Any) -> Any:
    def step(q: Any, k: Any, v: Any, ids: Any) -> Any:
        def call(q: Any, k: Any, v: Any) -> Any:
            return aya_kernels.attention(
                q, k, v, segment_ids=(ids, ids), return_lse=True, backend=backend, **options
            )

        found, pull = jax.vjp(call, q, k, v)
        return found, pull(found)

    arrays = [jax.ShapeDtypeStruct((1, tokens, heads, 16), jnp.float32) for heads in (4, 1, 1)]
    return compiled(step, *arrays, jax.ShapeDtypeStruct((1, tokens), jnp.int32))


def test_attention_never_makes_the_scores() -> None:
    tokens = 8192
    scores = 4 * tokens * tokens
    lean = attention_step("xla", tokens, window=1000, softcap=30.0)
    assert largest_array(lean.as_text()) < scores / 16
    assert lean.memory_analysis().temp_size_in_bytes < 4 * scores / 8
    # The same look at the definition finds them, so the look sees what it is for.
    fat = attention_step("reference", 1024)
    assert largest_array(fat.as_text()) >= 4 * 1024 * 1024
    assert fat.memory_analysis().temp_size_in_bytes >= 4 * 4 * 1024 * 1024


def test_attention_grows_with_the_tokens_and_not_with_their_square() -> None:
    short, long = (
        attention_step("xla", tokens).memory_analysis().temp_size_in_bytes
        for tokens in (4096, 16_384)
    )
    assert long < 5 * short


@pytest.mark.parametrize("masked", [False, True])
def test_linear_logprob_never_makes_the_logits(masked: bool) -> None:
    tokens, vocabulary = 512, 65_536

    def step(backend: str) -> Any:
        def loss(hidden: Any, weight: Any, targets: Any, mask: Any) -> Any:
            found = aya_kernels.linear_statistics(
                hidden,
                weight,
                targets,
                mask=mask if masked else None,
                entropy=True,
                backend=backend,
            )
            return found.logp.sum() + found.entropy.sum()

        shape = jax.ShapeDtypeStruct
        return compiled(
            jax.value_and_grad(loss, argnums=(0, 1)),
            shape((tokens, 16), jnp.float32),
            shape((vocabulary, 16), jnp.float32),
            shape((tokens,), jnp.int32),
            shape((tokens,), jnp.bool_),
        )

    logits = tokens * vocabulary
    lean, fat = step("xla"), step("reference")
    assert largest_array(lean.as_text()) < logits / 8
    assert lean.memory_analysis().temp_size_in_bytes < 4 * logits / 4
    assert largest_array(fat.as_text()) >= logits
    assert fat.memory_analysis().temp_size_in_bytes >= 4 * logits


def test_decode_attention_makes_no_copy_of_a_paged_cache() -> None:
    """Plain XLA gathers a step's pages; the whole of them would be as large as the cache."""
    shape = jax.ShapeDtypeStruct
    cache = shape((4096, 16, 1, 16), jnp.float32)
    program = compiled(
        lambda q, k, v, lengths, table: aya_kernels.decode_attention(
            q, k, v, lengths, page_table=table, backend="xla"
        ),
        shape((4, 2, 16), jnp.float32),
        cache,
        cache,
        shape((4,), jnp.int32),
        shape((4, 1024), jnp.int32),
    )
    assert program.memory_analysis().temp_size_in_bytes < 4 * 4096 * 16 * 16 / 4
