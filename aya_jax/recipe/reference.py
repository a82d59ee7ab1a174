"""The log-probabilities that DPO holds its policy to, worked out before training."""

from collections.abc import Mapping

import jax
import numpy as np

from aya_jax.data.examples import Rows
from aya_jax.model import Model
from aya_jax.models.architecture import require_decoder
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import Batch, Params
from aya_jax.models.heads import target_logprobs
from aya_jax.sharding.programs import dividing_length, filled_up


def logprob_rows(
    config: DecoderConfig, params: Params, rows: Mapping[str, jax.Array], numbers: tuple[()]
) -> jax.Array:
    """Return float32 [B]: summed log-probabilities of rows, [B, T] each, where `mask` is True."""
    batch = Batch(*(rows[name] for name in Batch._fields))
    return target_logprobs(config, params, batch, rows["mask"]).sum(-1)


def sequence_logprobs(model: Model, rows: Rows, *, batch_size: int = 32) -> np.ndarray:
    """Return float32 [R]: the summed log-probability of each row's completion under `model`.

    It is worked out where the model is, and all processes get it.

    Args:
      model: a language model.
      rows: arrays [R, T]; the tokens under `mask` are summed.
      batch_size: rows worked out together, more where so many do not divide over the mesh; the last
        batch is filled up.
    """
    require_decoder(model.config, "DPO")
    size, model = filled_up(batch_size, model.place), model.on_devices()
    length = rows.tokens.shape[1]
    width = -(-length // dividing_length(1, model.place)) * dividing_length(1, model.place)
    out = []
    for start in range(0, len(rows.tokens), size):
        part = {
            name: getattr(rows, name)[start : start + size] for name in (*Batch._fields, "mask")
        }
        found = len(part["mask"])
        filler = ((0, size - found), (0, width - length))
        padded = {name: np.pad(array, filler) for name, array in part.items()}
        out.append(model.run(logprob_rows, padded)[:found])
    return np.concatenate(out)
