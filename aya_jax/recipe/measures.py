"""What a model is worth on held-out records, one number a record: what a search for weights goes by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gin
import numpy as np

from aya_jax.arbitrage.arbiter import score
from aya_jax.data.atlas import check
from aya_jax.data.examples import pad, tokenize
from aya_jax.data.records import Record
from aya_jax.errors import AyaError
from aya_jax.evaluation.bootstrap import wins
from aya_jax.evaluation.evaluate import answer
from aya_jax.generation.engine import sample
from aya_jax.model import Model, inference, load_inference
from aya_jax.models.architecture import require_decoder
from aya_jax.recipe.reference import sequence_logprobs


@dataclass(frozen=True)
class Measure:
    """What is measured.

    Attributes:
      name: of `MEASURES`.
      of: of a model, float [R]: a number a record, the higher the better.
      uses: the configurables whose settings decide it.
    """

    name: str
    of: Callable[[Model], np.ndarray]
    uses: tuple[Callable[..., object], ...]


# The fields that records must have.
MEASURES = {
    "loss": ("prompt", "completion"),
    "reward": ("prompt",),
    "wins": ("prompt",),
    "correct": ("prompt", "answers", "language"),
}


@gin.configurable(denylist=["model", "records"])
def held_out_loss(
    model: Model, records: Sequence[Record], *, batch_size: int = 32, multiple: int = 64
) -> np.ndarray:
    """Return float64 [R]: the mean loss of each record's completion, in nats a token.

    Args:
      model: a language model.
      records: with `completion`.
      batch_size: rows worked out together.
      multiple: rows are padded to a multiple of this many tokens, so that few programs are compiled.

    Raises:
      AyaError: the model is no decoder, or a record is longer than its context.
    """
    limit = require_decoder(model.config, "the held-out loss").max_position_embeddings
    examples = [
        tokenize(record, model.tokenizer, field="completion", max_length=limit)
        for record in records
    ]
    widths: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        length = len(example.prompt) + len(example.completion)
        widths.setdefault(-(-length // multiple) * multiple, []).append(i)
    out = np.zeros(len(records))
    dtype = model.params["embedding"].dtype
    for width, members in sorted(widths.items()):
        rows = pad([examples[i] for i in members], length=width)
        sums = sequence_logprobs(model, rows, batch_size=batch_size, dtype=dtype)
        out[members] = -sums.astype(np.float64) / rows.mask.sum(1)
    return out


def fields_of(name: str) -> tuple[str, ...]:
    """Return the fields that records must have for a measure.

    Raises:
      AyaError: an unknown name.
    """
    if name not in MEASURES:
        raise AyaError(f"evaluate: unknown measure {name!r}; there are {', '.join(MEASURES)}")
    return MEASURES[name]


def measure_of(
    name: str,
    records: Sequence[Record],
    *,
    reward_model: str | None = None,
    opponent: str | None = None,
) -> Measure:
    """Return a measure by its name.

    Args:
      name: `loss`: minus the held-out loss of `completion`; `reward`: a reward model's, of what the model
        answers; `wins`: 1 where that reward is above the opponent's, 0 where below, 0.5 for a tie;
        `correct`: whether the checker accepts the answer.
      records: with the fields of `MEASURES`.
      reward_model: a directory, for `reward` and `wins`.
      opponent: a model directory, for `wins`; it answers now.

    Raises:
      AyaError: an unknown name, or a model that is missing, not needed or cannot be read.
    """
    fields_of(name)
    judged = name in ("reward", "wins")
    for flag, given, wanted in (
        ("--reward-model", reward_model, judged),
        ("--opponent", opponent, name == "wins"),
    ):
        if wanted != (given is not None):
            need = "needs" if wanted else "has no use for"
            raise AyaError(f"evaluate: {name!r} {need} {flag}")
    if name == "loss":
        return Measure(
            name, lambda model: -held_out_loss(model, records), (held_out_loss, inference)
        )
    uses = (sample, inference)
    if name == "correct":

        def correct(model: Model) -> np.ndarray:
            texts = answer(model, records)
            pairs = zip(records, texts, strict=True)
            return np.array([float(check(record, text).correct) for record, text in pairs])

        return Measure(name, correct, uses)
    assert reward_model is not None
    judge = load_inference(reward_model, reward=True)

    def rewards(model: Model) -> np.ndarray:
        return score(judge, records, answer(model, records)).astype(np.float64)

    if opponent is None:
        return Measure(name, rewards, (*uses, score))
    theirs = rewards(load_inference(opponent, reward=False))
    return Measure(
        name, lambda model: wins(rewards(model).tolist(), theirs.tolist()), (*uses, score)
    )
