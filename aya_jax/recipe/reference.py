"""The log-probabilities that DPO holds its policy to, worked out before training and kept with its data."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.data.examples import Rows
from aya_jax.data.files import atomic_write, fingerprint, told_plainly
from aya_jax.model import Model
from aya_jax.models.architecture import require_decoder
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import Batch, Params
from aya_jax.models.heads import target_logprobs
from aya_jax.sharding.processes import from_lead, is_lead, together
from aya_jax.sharding.programs import dividing_length, filled_up

# The folder of a training's work that has them.
REFERENCE = "reference"
SIDES = ("chosen", "rejected")
# Batches between two writings: what is lost by a kill.
BATCHES_AT_ONCE = 64


def reference_logprobs(
    model: Model,
    pairs: Mapping[str, np.ndarray],
    directory: Path,
    key: Any,
    *,
    dtype: Any = jnp.float32,
    batch_size: int = 32,
) -> dict[str, np.ndarray]:
    """Return float32 [P] `reference_chosen` and `reference_rejected`: summed log-probabilities.

    They are kept on the disk as they come. Of what a killed attempt at the same training has left,
    nothing is worked out again, and nothing half-written is used.

    Args:
      model: the reference.
      pairs: rows as `data.examples.padded_pairs` makes them.
      directory: where the training works; seen by all processes.
      key: JSON-able; tells the pairs from others.
      dtype: of activations, as in training.
      batch_size: see `sequence_logprobs`.

    Raises:
      AyaError: the model is no decoder, or the disk is full or cannot be written.
    """
    made_of = [key, model.lineage, np.dtype(dtype).name]
    folder = directory / REFERENCE / fingerprint(made_of)
    with told_plainly(folder):
        folder.mkdir(parents=True, exist_ok=True)
    count, at_once = len(pairs["chosen_tokens"]), BATCHES_AT_ONCE * batch_size
    files = {start: folder / f"{start:010d}" for start in range(0, count, at_once)}
    whole = from_lead([start for start, file in files.items() if _read(file) is not None])
    if len(whole) < len(files):
        model = model.on_devices()
    found = []
    for start, file in files.items():
        part = _read(file) if start in whole else None
        if part is None:
            settings = {"batch_size": batch_size, "dtype": dtype}
            sides = (_side(pairs, side, start, start + at_once) for side in SIDES)
            part = np.stack([sequence_logprobs(model, rows, **settings) for rows in sides])
            together("reference", partial(_write, file, part))
        found.append(part)
    return dict(zip((f"reference_{side}" for side in SIDES), np.concatenate(found, 1), strict=True))


def _side(pairs: Mapping[str, np.ndarray], side: str, start: int, stop: int) -> Rows:
    arrays = {name: pairs.get(f"{side}_{name}", pairs["languages"]) for name in Rows._fields}
    return Rows(**{name: array[start:stop] for name, array in arrays.items()})


def _write(file: Path, part: np.ndarray) -> None:
    """Write float32 [2, n], after the checksum of its bytes; the lead does."""
    if is_lead():
        data = part.tobytes()
        atomic_write(file, hashlib.sha256(data).digest() + data)


def _read(file: Path) -> np.ndarray | None:
    """Return what `_write` wrote, None if it is not there whole."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    data = content[32:]
    if hashlib.sha256(data).digest() != content[:32]:
        return None
    return np.frombuffer(data, np.float32).reshape(2, -1)


def logprob_rows(
    config: DecoderConfig,
    params: Params,
    rows: Mapping[str, jax.Array],
    numbers: tuple[()],
    *,
    dtype: Any,
) -> jax.Array:
    """Return float32 [B]: summed log-probabilities of rows, [B, T] each, where `mask` is True."""
    batch = Batch(*(rows[name] for name in Batch._fields))
    return target_logprobs(config, params, batch, rows["mask"], dtype=dtype).sum(-1)


def sequence_logprobs(
    model: Model, rows: Rows, *, batch_size: int = 32, dtype: Any = jnp.float32
) -> np.ndarray:
    """Return float32 [R]: the summed log-probability of each row's completion under `model`.

    It is worked out where the model is, and all processes get it.

    Args:
      model: a language model.
      rows: arrays [R, T]; the tokens under `mask` are summed.
      batch_size: rows worked out together, more where so many do not divide over the mesh; the last
        batch is filled up.
      dtype: of activations.
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
        out.append(model.run(logprob_rows, padded, dtype=dtype)[:found])
    return np.concatenate(out)
