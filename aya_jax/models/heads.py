"""The language-model head (tied embeddings) and the scalar reward head."""

from typing import Any

import jax
import jax.numpy as jnp

from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import Batch, Params, hidden_states
from aya_kernels import linear_logprob


def logits(config: DecoderConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Return float32 logits [..., V] of hidden states [..., D]: `logit_scale * hidden @ E.T`."""
    embedding = params["embedding"].astype(hidden.dtype)
    scores = jnp.einsum("...d,vd->...v", hidden, embedding, preferred_element_type=jnp.float32)
    return scores * config.logit_scale


def target_logprobs(
    config: DecoderConfig,
    params: Params,
    batch: Batch,
    mask_BT: jax.Array,
    *,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> jax.Array:
    """Return float32 [B, T]: log p(tokens[:, t] | tokens before it) where `mask` is True, else 0.

    The logits [B * T, V] are never made. Column 0 is always 0, since nothing comes before it, and
    so must be the mask at the first token of each packed document.
    """
    hidden = hidden_states(config, params, batch, dtype=dtype, remat=remat)
    b, t, d = hidden.shape
    logprobs = linear_logprob(
        hidden[:, :-1].reshape(-1, d),
        params["embedding"].astype(dtype),
        batch.tokens[:, 1:].reshape(-1),
        scale=config.logit_scale,
        mask=mask_BT[:, 1:].reshape(-1),
    )
    return jnp.pad(logprobs.reshape(b, t - 1), ((0, 0), (1, 0)))


def rewards(
    config: DecoderConfig,
    params: Params,
    batch: Batch,
    *,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> jax.Array:
    """Return float32 [B]: the scalar head at the last real token of each (unpacked) row."""
    hidden = hidden_states(config, params, batch, dtype=dtype, remat=remat)
    last = jnp.maximum((batch.segment_ids > 0).sum(-1) - 1, 0)
    final = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return final.astype(jnp.float32) @ params["score"].astype(jnp.float32)
