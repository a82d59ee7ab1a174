"""The language-model head and the scalar reward head."""

from typing import Any

import jax
import jax.numpy as jnp

from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import Batch, Params, hidden_states
from aya_jax.models.placement import placement
from aya_jax.models.t5_config import T5Config
from aya_kernels import linear_logprob


def output_embedding(params: Params) -> jax.Array:
    """Return the matrix [V, D] that logits are made with: `output`, or the tied `embedding`."""
    return params["output"] if "output" in params else params["embedding"]


def logits(config: DecoderConfig | T5Config, params: Params, hidden: jax.Array) -> jax.Array:
    """Return float32 logits [..., V] of hidden states [..., D].

    They are `logit_scale * hidden @ E.T` (Cohere), capped as `cap * tanh(logits / cap)` where the
    config has `final_logit_softcapping` (Gemma 2, arXiv 2408.00118, section 2).
    """
    matrix = output_embedding(params).astype(hidden.dtype)
    scores = jnp.einsum("...d,vd->...v", hidden, matrix, preferred_element_type=jnp.float32)
    scores = scores * config.logit_scale
    cap = config.final_logit_softcapping
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def logprobs_of_hidden(
    config: DecoderConfig | T5Config,
    params: Params,
    hidden_BTD: jax.Array,
    tokens_BT: jax.Array,
    mask_BT: jax.Array,
) -> jax.Array:
    """Return float32 [B, T]: log p(tokens[:, t] | tokens before it) where `mask` is True, else 0.

    The logits [B * T, V] are never made. Column 0 is always 0, since nothing comes before it, and
    so must be the mask at the first token of each packed document.
    """
    # Each place is scored on the token after it; the last has none, and costs nothing.
    targets = jnp.roll(tokens_BT, -1, axis=1)
    mask = jnp.roll(mask_BT, -1, axis=1).at[:, -1].set(False)
    logprobs = linear_logprob(
        hidden_BTD,
        output_embedding(params).astype(hidden_BTD.dtype),
        targets,
        scale=config.logit_scale,
        softcap=config.final_logit_softcapping,
        mask=mask,
        placement=placement(len(tokens_BT)),
    )
    return jnp.roll(logprobs, 1, axis=1)


def rewards_of_hidden(
    params: Params, hidden_BTD: jax.Array, segment_ids_BT: jax.Array
) -> jax.Array:
    """Return float32 [B]: the scalar head at the last real token of each (unpacked) row.

    Args:
      params: with a leaf `score` [D].
      hidden_BTD: final hidden states.
      segment_ids_BT: int32 [B, T], 0 on padding, which may be on either side.
    """
    places = jnp.arange(segment_ids_BT.shape[1])
    last = jnp.where(segment_ids_BT > 0, places, 0).max(-1)
    final = jnp.take_along_axis(hidden_BTD, last[:, None, None], axis=1)[:, 0]
    return final.astype(jnp.float32) @ params["score"].astype(jnp.float32)


def target_logprobs(
    config: DecoderConfig,
    params: Params,
    batch: Batch,
    mask_BT: jax.Array,
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
) -> jax.Array:
    """Run the decoder; return float32 [B, T] as `logprobs_of_hidden` does.

    `dtype` and `remat` as in `hidden_states`.
    """
    hidden = hidden_states(config, params, batch, dtype=dtype, remat=remat)
    return logprobs_of_hidden(config, params, hidden, batch.tokens, mask_BT)


def rewards(
    config: DecoderConfig,
    params: Params,
    batch: Batch,
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
) -> jax.Array:
    """Run the decoder; return float32 [B] as `rewards_of_hidden` does.

    `dtype` and `remat` as in `hidden_states`.
    """
    hidden = hidden_states(config, params, batch, dtype=dtype, remat=remat)
    return rewards_of_hidden(params, hidden, batch.segment_ids)
