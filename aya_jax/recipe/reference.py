"""The log-probabilities that DPO holds its policy to, worked out before training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.data.examples import Rows
from aya_jax.model import Model
from aya_jax.models.architecture import require_decoder
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import Batch, Params
from aya_jax.models.heads import target_logprobs


@partial(jax.jit, static_argnames="config")
def _sequence_logprobs(
    config: DecoderConfig, params: Params, batch: Batch, mask: jax.Array
) -> jax.Array:
    return target_logprobs(config, params, batch, mask).sum(-1)


def sequence_logprobs(model: Model, rows: Rows, *, batch_size: int = 32) -> np.ndarray:
    """Return float32 [R]: the summed log-probability of each row's completion under `model`.

    Args:
      model: a language model.
      rows: arrays [R, T]; the tokens under `mask` are summed.
      batch_size: rows worked out together; the last batch is filled up.
    """
    config = require_decoder(model.config, "DPO")
    out, params = [], jax.device_put(model.params)
    for start in range(0, len(rows.tokens), batch_size):
        part = [array[start : start + batch_size] for array in rows]
        short = batch_size - len(part[0])
        tokens, positions, segments, mask, *_ = (np.pad(x, ((0, short), (0, 0))) for x in part)
        batch = Batch(*map(jnp.asarray, (tokens, positions, segments)))
        values = _sequence_logprobs(config, params, batch, jnp.asarray(mask))
        out.append(np.asarray(values)[: batch_size - short])
    return np.concatenate(out)
