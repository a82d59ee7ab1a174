"""What is asked of a recipe, looked at before it trains a model: whatever would stop it hours later."""

from collections.abc import Mapping, Sequence
from typing import Any

from aya_jax.arbitrage.pool import open_pool
from aya_jax.arbitrage.preferences import require_lesson
from aya_jax.data.examples import fits, tokenize
from aya_jax.data.records import Record, name_of, prompt_messages, read_records
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError
from aya_jax.model import load_model_config
from aya_jax.models.architecture import require_decoder
from aya_jax.recipe.stages import Context, by_lead_alone
from aya_jax.recipe.tasks import RECORDS, in_languages


@by_lead_alone
def check(
    context: Context,
    *,
    reader: str,
    pool: Sequence[str],
    clusters: Mapping[str, Sequence[str]],
    positions: int | None,
    answer: int,
    evaluated: int,
    max_length: int,
    max_pair_length: int,
) -> dict[str, Any]:
    """Make sure, before a model is trained, that all that is asked can be answered and learnt.

    Args:
      context: its inputs are the records, and the models and recorded answers that the user brings.
      reader: the input that has the base model's tokenizer.
      pool: the teachers.
      clusters: the languages of each.
      positions: the context of the models that are trained from nothing, if any is.
      answer, evaluated: the most tokens of an answer to a prompt, and to one of the evaluation.
      max_length, max_pair_length: the most tokens of a prompt with its answer, where language
        models and reward models learn.

    Returns:
      The tokens of the longest prompt of each set of records.

    Raises:
      AyaError: the base model is no decoder, a prompt leaves no room for an answer, an example of
        the reward models is too long or teaches nothing, no recorded answer fits a prompt, or a
        cluster has no prompt.
    """
    tokenizer = Tokenizer.load(context.inputs[reader])
    configs = {
        name: load_model_config(place)
        for name, place in context.inputs.items()
        if (place / "config.json").is_file()
    }
    if reader in configs:
        require_decoder(configs[reader], "the recipe's base model")
    limits = [config.max_position_embeddings for config in configs.values()]
    limit = min([*limits, positions] if positions else limits)
    rooms = {
        "prompts": min(limit, max_length) - answer - 1,
        "evaluation_prompts": limit - evaluated - 1,
        "reward_prompts": limit - answer - 1,
    }
    asked = {
        name: read_records(context.inputs[name] / RECORDS)
        for name in rooms
        if name in context.inputs
    }
    longest = {}
    for name, rows in asked.items():
        sizes = [len(tokenizer.encode_chat(prompt_messages(row))) for row in rows]
        long = [row for row, size in zip(rows, sizes, strict=True) if size > rooms[name]]
        if long:
            raise AyaError(
                f"{name}: {len(long)} of {len(rows)} prompts are longer than {rooms[name]} tokens "
                f"and leave no room for an answer, the first is {name_of(long[0])}; shorten them, "
                "leave them out or change lengths.max_length or sample.max_new_tokens"
            )
        longest[name] = max(sizes)
    for row in asked.get("reward_prompts", ()):
        require_lesson(row)
        for field in ("completion", "chosen", "rejected"):
            if field in row:
                tokenize(row, tokenizer, field=field, max_length=min(limit, max_pair_length))
    for cluster, languages in clusters.items():
        if not in_languages(asked["prompts"], languages):
            raise AyaError(
                f"prompts: there is none in {', '.join(languages)}; leave cluster {cluster!r} out of "
                "language_clusters.groups"
            )
    files = {name: context.inputs.get(f"teacher.{name}") for name in pool}
    if all(file is not None and file.is_file() for file in files.values()):
        _require_recorded(asked["prompts"], files, tokenizer, min(limit, max_length))
    return longest


def _require_recorded(
    rows: Sequence[Record], files: Mapping[str, Any], tokenizer: Tokenizer, limit: int
) -> None:
    """Raise `AyaError` where a pool that only has recorded answers has none for a prompt."""
    answers = [ask(rows) for ask in open_pool(files).values()]
    without = [
        row
        for row, *texts in zip(rows, *answers, strict=True)
        if not any(text and fits(row, text, tokenizer, limit) for text in texts)
    ]
    if without:
        raise AyaError(
            f"prompts: {len(without)} of {len(rows)} have no recorded answer that with the prompt is "
            f"at most {limit} tokens long, the first is {name_of(without[0])}; leave them out, raise "
            "lengths.max_length or add a teacher"
        )
