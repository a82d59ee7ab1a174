"""The arbiter: a reward model that scores completions."""

from collections.abc import Sequence
from functools import partial

import gin
import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.data.examples import Example, pad, tokenize
from aya_jax.data.records import Record
from aya_jax.model import Model
from aya_jax.models.architecture import require_decoder
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import Batch, Params
from aya_jax.models.heads import rewards


@partial(jax.jit, static_argnames="config")
def _rewards(config: DecoderConfig, params: Params, batch: Batch) -> jax.Array:
    return rewards(config, params, batch)


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

    Args:
      model: a reward model.
      records, completions: one completion a record.
      batch_size: rows scored together.
      multiple: rows are padded to a multiple of this many tokens.

    Raises:
      AyaError: a prompt with its completion exceeds the context.
    """
    config = require_decoder(model.config, "an arbiter")
    limit = config.max_position_embeddings
    examples = [
        tokenize(
            {**record, "completion": text}, model.tokenizer, field="completion", max_length=limit
        )
        for record, text in zip(records, completions, strict=True)
    ]
    widths: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        length = len(example.prompt) + len(example.completion)
        widths.setdefault(-(-length // multiple) * multiple, []).append(i)
    out = np.zeros(len(examples), np.float32)
    filler = Example([model.tokenizer.eos_id], [model.tokenizer.eos_id])
    for width, members in sorted(widths.items()):
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            rows = [examples[i] for i in part] + [filler] * (batch_size - len(part))
            tokens, positions, segment_ids, *_ = pad(rows, length=width)
            batch = Batch(*map(jnp.asarray, (tokens, positions, segment_ids)))
            values = _rewards(config, model.params, batch)
            out[part] = np.asarray(values)[: len(part)]
    return out
