"""The arbiter: a reward model that scores completions."""

from collections.abc import Mapping, Sequence

import gin
import jax
import numpy as np

from aya_jax.data.examples import Example, pad, tokenize
from aya_jax.data.records import Record
from aya_jax.model import Model
from aya_jax.models.architecture import require_decoder
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import Batch, Params
from aya_jax.models.heads import rewards
from aya_jax.sharding.programs import dividing_length, filled_up


def reward_rows(
    config: DecoderConfig, params: Params, rows: Mapping[str, jax.Array], numbers: tuple[()]
) -> jax.Array:
    """Return float32 [B]: the rewards of rows `tokens`, `positions` and `segment_ids` [B, T].

    Activations are of the dtype of the embedding.
    """
    return rewards(config, params, Batch(**rows), dtype=params["embedding"].dtype)


@gin.configurable(denylist=["model", "records", "completions"])
def score(
    model: Model,
    records: Sequence[Record],
    completions: Sequence[str],
    *,
    batch_size: int = 64,
    multiple: int = 32,
) -> np.ndarray:
    """Return float32 [R]: the reward of each completion as the answer to its record's prompt.

    All processes get them.

    Args:
      model: a reward model. It runs where it is: on a mesh rows are split over the devices.
      records, completions: one completion a record.
      batch_size: rows scored together, more where so many do not divide over the mesh.
      multiple: rows are padded to a multiple of this many tokens.

    Raises:
      AyaError: a prompt with its completion exceeds the context.
    """
    limit = require_decoder(model.config, "an arbiter").max_position_embeddings
    examples = [
        tokenize(
            {**record, "completion": text}, model.tokenizer, field="completion", max_length=limit
        )
        for record, text in zip(records, completions, strict=True)
    ]
    size = filled_up(batch_size, model.place)
    multiple = dividing_length(multiple, model.place)
    widths: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        length = len(example.prompt) + len(example.completion)
        widths.setdefault(-(-length // multiple) * multiple, []).append(i)
    out = np.zeros(len(examples), np.float32)
    filler = Example([model.tokenizer.eos_id], [model.tokenizer.eos_id])
    for width, members in sorted(widths.items()):
        for start in range(0, len(members), size):
            part = members[start : start + size]
            rows = pad([examples[i] for i in part] + [filler] * (size - len(part)), length=width)
            arrays = {name: getattr(rows, name) for name in Batch._fields}
            out[part] = model.run(reward_rows, arrays)[: len(part)]
    return out
