"""The teacher pool: models that answer now, and files of answers recorded before."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gin

from aya_jax.arbitrage.arbiter import score
from aya_jax.data.files import stable_hash
from aya_jax.data.records import Record, name_of, prompt_messages, read_records
from aya_jax.errors import AyaError
from aya_jax.generation.engine import sample
from aya_jax.model import Model, load_inference, load_model_config, require_kind

Answerer = Callable[[Sequence[Record]], list[str | None]]


def model_member(path: str | Path) -> Answerer:
    """Return a pool member that answers each prompt once with a model, by `sample`'s settings.

    The model is on the devices only while it answers, on the mesh that gin describes.

    Raises:
      AyaError: the path is no directory of a language model.
    """
    load_model_config(path)
    require_kind(path, reward=False)

    def answer(records: Sequence[Record]) -> list[str | None]:
        model = load_inference(path, reward=False)
        prompts = [prompt_messages(record) for record in records]
        return [texts[0] for texts in sample(model, prompts)]

    return answer


def _asked(record: Record) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """Return what tells one question from another: its language and its turns."""
    turns = tuple((turn["role"], turn["content"]) for turn in prompt_messages(record))
    return record.get("language"), turns


def recorded_member(records: Sequence[Record]) -> Answerer:
    """Return a pool member that answers with completions recorded for the same prompts.

    A prompt is found by its language and its turns, the first record of it counts; None is the
    answer to one that was not recorded.
    """
    known: dict[object, str] = {}
    for record in records:
        known.setdefault(_asked(record), record["completion"])

    def answer(asked: Sequence[Record]) -> list[str | None]:
        return [known.get(_asked(record)) for record in asked]

    return answer


def open_pool(paths: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, Answerer]:
    """Return the pool's members by name: model directories, and JSONL files of completions.

    A file whose records name a `model` gives one member for each of its models.

    Raises:
      AyaError: a path is neither, two members have one name, or the pool is empty.
    """
    named = paths.items() if isinstance(paths, Mapping) else ((Path(p).name, p) for p in paths)
    pool: dict[str, Answerer] = {}

    def add(name: str, path: str | Path, member: Answerer) -> None:
        if name in pool:
            raise AyaError(f"{path}: the pool has a member called {name!r} already; rename one")
        pool[name] = member

    for name, path in named:
        if Path(path).is_dir():
            add(name, path, model_member(path))
            continue
        by_model: dict[str, list[Record]] = {}
        for record in read_records(path, required=("prompt", "completion")):
            by_model.setdefault(str(record.get("model", name)), []).append(record)
        for model, part in by_model.items():
            add(model, path, recorded_member(part))
    if not pool:
        raise AyaError("the teacher pool is empty; name model directories or JSONL files")
    return pool


@gin.configurable(denylist=["records", "pool"])
def ask_some(
    records: Sequence[Record], pool: Mapping[str, Answerer], *, members: int = 2, seed: int = 0
) -> list[Record]:
    """Return the records with `candidates`, without rewards, of a few members each.

    Args:
      records: prompts; nobody is asked about one that has its `chosen` and `rejected` already.
      pool: the members.
      members: how many answer each prompt, drawn by the seed and the prompt.
      seed: of the draw.
    """
    out: list[Record] = [{**record, "candidates": []} for record in records]
    drawn = [
        sorted(pool, key=lambda name: stable_hash(seed, name, record["prompt"]))[:members]
        if "chosen" not in record
        else []
        for record in records
    ]
    for name, answer in pool.items():
        asked = [record for record, names in zip(out, drawn, strict=True) if name in names]
        for record, text in zip(asked, answer(asked) if asked else [], strict=True):
            if text:
                record["candidates"].append({"model": name, "completion": text})
    return out


def answer_and_score(
    records: Sequence[Record], pool: Mapping[str, Answerer], arbiter: Model
) -> list[Record]:
    """Return the records with `candidates`: every member's completion and its reward.

    Args:
      records: prompts.
      pool: the members; an answer of None (not recorded) or "" is left out.
      arbiter: the reward model.

    Raises:
      AyaError: a prompt got no answer at all.
    """
    out: list[Record] = [{**record, "candidates": []} for record in records]
    for name, answer in pool.items():
        texts = answer(records)
        answered = [(r, t) for r, t in zip(out, texts, strict=True) if t]
        values = score(arbiter, [r for r, _ in answered], [t for _, t in answered])
        for (record, text), value in zip(answered, values, strict=True):
            record["candidates"].append({"model": name, "completion": text, "reward": float(value)})
    for record in out:
        if not record["candidates"]:
            raise AyaError(
                f"{name_of(record)}: no member of the pool answered it; leave it out or add a member"
            )
    return out
