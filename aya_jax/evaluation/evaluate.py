"""Answers of a model on held-out prompts, marked by the checker and by two reward models."""

from collections.abc import Mapping, Sequence

from aya_jax.arbitrage.arbiter import score
from aya_jax.data.atlas import check
from aya_jax.data.languages import language_of, script_share
from aya_jax.data.records import Record, prompt_messages
from aya_jax.errors import AyaError
from aya_jax.evaluation.bootstrap import Figure, summarise, wins
from aya_jax.generation.engine import sample
from aya_jax.model import Model


def answer(model: Model, records: Sequence[Record]) -> list[str]:
    """Return one completion a record, by the settings of `sample`.

    Raises:
      AyaError: a prompt leaves no room in the context.
    """
    prompts = [prompt_messages(record) for record in records]
    return [texts[0] for texts in sample(model, prompts)]


def mark(
    records: Sequence[Record], completions: Sequence[str], judges: Mapping[str, Model]
) -> list[Record]:
    """Return the records with their `completion` marked.

    Each gets `correct` (where the record has reference `answers`), `right_language`, and the reward
    of every judge under the judge's name. Where a record has no reference, the right language means
    that most letters are of the language's script.

    Args:
      records: prompts.
      completions: one a record.
      judges: reward models by the field that their rewards go into.

    Raises:
      AyaError: a prompt with its completion exceeds a judge's context.
    """
    marked = []
    for record, text in zip(records, completions, strict=True):
        row = {**record, "completion": text}
        if "answers" in record:
            verdict = check(record, text)
            row.update(correct=verdict.correct, right_language=verdict.right_language)
        elif "language" in record:
            code = str(record.get("answer_language", record["language"]))
            row["right_language"] = script_share(text, language_of(code).script) > 0.5
        marked.append(row)
    for name, judge in judges.items():
        for row, value in zip(marked, score(judge, records, completions), strict=True):
            row[name] = float(value)
    return marked


def summary(
    marked: Sequence[Record], opponent: Sequence[Record] | None = None
) -> dict[str, Figure]:
    """Return the figures of one model, as `report.json` has them under `models.NAME`.

    Args:
      marked: the model's marked answers.
      opponent: the opponent's, to the same prompts; gives `win_rate` (the unused judge's higher
        reward wins) and `checker_win_rate` (correct against not), ties counting half.

    Raises:
      AyaError: the opponent answered other prompts.
    """
    languages = [row.get("language", "und") for row in marked]
    figures = {
        name: summarise([float(row[name]) for row in marked], languages)
        for name in ("correct", "right_language", "reward", "unused_reward")
        if all(name in row for row in marked)
    }
    if "correct" in figures and all("kind" in row for row in marked):
        values, kinds = [float(row["correct"]) for row in marked], [row["kind"] for row in marked]
        figures["correct"]["by_kind"] = summarise(values, kinds)["by_language"]
    if opponent is None:
        return figures
    if [row["prompt"] for row in marked] != [row["prompt"] for row in opponent]:
        raise AyaError("evaluate: the model and its opponent did not answer the same prompts")
    for name, source in (("win_rate", "unused_reward"), ("checker_win_rate", "correct")):
        if source in figures:
            ours = [row[source] for row in marked]
            figures[name] = summarise(
                wins(ours, [row[source] for row in opponent]).tolist(), languages
            )
    return figures
