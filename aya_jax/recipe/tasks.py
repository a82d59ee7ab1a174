"""What each stage of the recipe does in its folder, from its inputs' folders."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

from aya_jax.arbitrage.arbiter import score
from aya_jax.arbitrage.pairs import best_against_worst
from aya_jax.arbitrage.pool import Answerer, answer_and_score, ask_some, open_pool
from aya_jax.arbitrage.preferences import preference_pairs
from aya_jax.arbitrage.routers import route, routing_counts
from aya_jax.data import sources
from aya_jax.data.examples import fits
from aya_jax.data.files import atomic_write, stable_hash
from aya_jax.data.records import Record, prompt_messages, read_records, write_records
from aya_jax.data.tokenizer import Tokenizer, train_tokenizer
from aya_jax.evaluation.evaluate import answer, mark
from aya_jax.generation.engine import sample
from aya_jax.merging.diagnosis import diagnose
from aya_jax.merging.merge import merge_into
from aya_jax.merging.settings import MergeConfig, merge_config
from aya_jax.merging.sources import open_source
from aya_jax.model import Model, load_inference, load_model_config
from aya_jax.recipe import job_settings, jobs
from aya_jax.recipe.fit import Work
from aya_jax.recipe.run_directory import require_seen
from aya_jax.recipe.stages import Context, by_lead_alone, lead_writes

RECORDS = "records.jsonl"
DIAGNOSIS = "diagnosis.json"


def _work(context: Context) -> Work:
    return Work(context.directory, context.name, context.line.update, context.events)


def _records(context: Context, name: str) -> list[Record]:
    place = context.inputs[name] / RECORDS
    # A stage may have found none: of answers that are all equal there is no pair.
    return read_records(place) if place.stat().st_size else []


def _write(context: Context, rows: Sequence[Record], name: str = RECORDS) -> None:
    lead_writes(context, lambda: str(write_records(context.directory / name, rows)))


def _load(context: Context, name: str, *, reward: bool) -> Model:
    return load_inference(context.inputs[name], reward=reward)


def in_languages(records: Sequence[Record], languages: Sequence[str]) -> list[Record]:
    """Return the records in some languages, or in variants of them."""
    return [r for r in records if r.get("language", "und").split("-")[0] in languages]


@by_lead_alone
def tokenizer(context: Context) -> dict[str, Any]:
    """Train a tokenizer on the text of its scope."""
    lines = sources.text()
    trained = train_tokenizer(lines)
    trained.save(context.directory)
    tokens = sum(len(trained.encode(line)) for line in lines)
    characters = sum(map(len, lines))
    return {"pieces": trained.vocab_size, "characters_per_token": characters / tokens}


def base(context: Context) -> dict[str, Any]:
    """Train a fresh decoder on the text of its scope."""
    return jobs.pretrain(
        sources.text(),
        Tokenizer.load(context.inputs["tokenizer"]),
        work=_work(context),
    )


@by_lead_alone
def own_records(context: Context) -> dict[str, Any]:
    """Keep the records of the scope's source."""
    rows = sources.records()
    write_records(context.directory / RECORDS, rows)
    return {"prompts": len(rows)}


def teacher(context: Context, *, languages: Sequence[str]) -> dict[str, Any]:
    """Fine-tune the base model on reference answers in some languages."""
    return jobs.sft(
        jobs.load_start(context.inputs["base"], reward=False),
        sources.records(languages=languages),
        work=_work(context),
    )


def _open_pool(
    context: Context, teachers: Sequence[str], max_length: int
) -> tuple[dict[str, Answerer], Counter[str]]:
    """Return the pool, whose answers are kept as they come: a member is not asked twice.

    An answer that the base model could not learn, for its length, counts as none; how many of each
    member there were is in the counter when all have been asked.
    """
    place = context.inputs["base"]
    config = load_model_config(place)
    tokenizer, limit = Tokenizer.load(place), min(max_length, config.max_position_embeddings)
    too_long: Counter[str] = Counter()
    pool = open_pool({name: context.inputs[f"teacher.{name}"] for name in teachers})
    shards = context.directory / "answers"
    lead_writes(context, lambda: shards.mkdir(exist_ok=True))

    def kept(name: str, ask: Answerer) -> Answerer:
        def answer_once(records: Sequence[Record]) -> list[str | None]:
            shard = shards / f"{quote(name, safe='')}.json"
            if not lead_writes(context, shard.exists):
                text = json.dumps(ask(records), ensure_ascii=False)
                lead_writes(context, lambda: atomic_write(shard, text))
            require_seen(shard)
            context.line.update(len(list(shards.iterdir())), len(pool), note=name)
            answers = json.loads(shard.read_text("utf-8"))
            for i, (record, text) in enumerate(zip(records, answers, strict=True)):
                if text and not fits(record, text, tokenizer, limit):
                    answers[i] = None
                    too_long[name] += 1
            return answers

        return answer_once

    return {name: kept(name, ask) for name, ask in pool.items()}, too_long


def reward_answers(context: Context, *, teachers: Sequence[str], max_length: int) -> dict[str, Any]:
    """A few teachers answer each of the reward models' prompts: poor answers of real models."""
    pool, too_long = _open_pool(context, teachers, max_length)
    rows = ask_some(_records(context, "reward_prompts"), pool)
    _write(context, rows)
    answers = sum(len(row["candidates"]) for row in rows)
    return {"answers": answers, "too_long": too_long.total()}


def reward(context: Context, *, half: int) -> dict[str, Any]:
    """Train a reward model on the pairs of one half of the prompts, a tenth of them held out."""
    rows = _records(context, "reward_answers")
    model = jobs.load_start(context.inputs["base"], reward=False)
    limit = min(job_settings.lengths()[0], model.config.max_position_embeddings)
    # A completion that was made of another record's may be too long for this prompt.
    pairs = [
        pair
        for pair in preference_pairs(
            [r for r in rows if stable_hash("half", r["prompt"]) % 2 == half]
        )
        if all(fits(pair, pair[side], model.tokenizer, limit) for side in ("chosen", "rejected"))
    ]
    held_out = [p for p in pairs if stable_hash("held out", p["prompt"]) % 10 == 0]
    learnt = [p for p in pairs if stable_hash("held out", p["prompt"]) % 10]
    figures = jobs.reward(
        model,
        learnt,
        work=_work(context),
    )
    if held_out:
        made = load_inference(context.directory, reward=True)
        accuracy = jobs.pair_accuracy(made, held_out)
        figures["held_out_accuracy"] = accuracy
    return figures


def candidates(context: Context, *, teachers: Sequence[str], max_length: int) -> dict[str, Any]:
    """Every teacher answers every prompt, and the reward model scores the answers."""
    arbiter = _load(context, "reward", reward=True)
    limit = min(max_length, arbiter.config.max_position_embeddings)
    pool, too_long = _open_pool(context, teachers, limit)
    rows = answer_and_score(_records(context, "prompts"), pool, arbiter)
    _write(context, rows)
    return {"prompts": len(rows), "teachers": len(pool), "too_long": too_long.total()}


@by_lead_alone
def route_candidates(context: Context, *, router: str) -> dict[str, Any]:
    """Choose one candidate for each prompt."""
    routed = route(_records(context, "candidates"), router=router)
    write_records(context.directory / RECORDS, routed)
    return {"completions": len(routed), "routing": routing_counts(routed)}


@by_lead_alone
def pairs(context: Context) -> dict[str, Any]:
    """Set each prompt's best candidate against its worst."""
    rows = best_against_worst(_records(context, "candidates"))
    write_records(context.directory / RECORDS, rows)
    return {"pairs": len(rows)}


def sft(context: Context, *, start: str, data: str, languages: Sequence[str]) -> dict[str, Any]:
    """Fine-tune on the routed completions in some languages; without any the model stays as it is.

    So a single teacher that answered none of a cluster's prompts can still be compared with.
    """
    rows = in_languages(_records(context, data), languages)
    if not rows:
        _as_it_is(context, start)
        return {"examples": 0}
    return jobs.sft(
        jobs.load_start(context.inputs[start], reward=False),
        rows,
        work=_work(context),
    )


def dpo(context: Context, *, start: str, data: str, languages: Sequence[str]) -> dict[str, Any]:
    """Preference-train on the pairs in some languages; without any pair the model stays as it is."""
    rows = in_languages(_records(context, data), languages)
    if not rows:
        _as_it_is(context, start)
        return {"pairs": 0}
    return jobs.dpo(
        jobs.load_start(context.inputs[start], reward=False),
        rows,
        work=_work(context),
    )


def merge_parts(
    context: Context, *, parts: Sequence[str], start: str, **settings: Any
) -> dict[str, Any]:
    """Merge the cluster models; `start` is what they were trained from."""
    models = [context.inputs[part] for part in parts]
    config = merge_config(models=models, base=context.inputs[start], **settings)
    merge_into(context.directory, config, stage=context.name)
    return {"models": len(parts)}


@by_lead_alone
def diagnosis(context: Context, *, parts: Sequence[str], start: str) -> dict[str, Any]:
    """Tell how far models that are merged are from each other and from what they were trained from."""
    with ExitStack() as stack:
        models = [stack.enter_context(open_source(context.inputs[part])) for part in parts]
        found = diagnose(models, stack.enter_context(open_source(context.inputs[start])))
    atomic_write(context.directory / DIAGNOSIS, json.dumps({"models": list(parts), **found}) + "\n")
    return {"conflicts": found["all"]["conflicts"]}


def _as_it_is(context: Context, start: str) -> None:
    """Make a model of the one that there is: a merge of it alone."""
    config = MergeConfig((str(context.inputs[start]),))
    merge_into(context.directory, config, stage=context.name)


def online_samples(context: Context, *, start: str, max_length: int) -> dict[str, Any]:
    """Several completions for each prompt from the newest model, ranked; best against worst.

    A completion that could not be learnt, for its length, is left out: text that a model samples may
    be read in more tokens than it was written in.
    """
    prompts = _records(context, "prompts")
    model = _load(context, start, reward=False)
    texts = sample(model, [prompt_messages(r) for r in prompts])
    tokenizer, positions = model.tokenizer, model.config.max_position_embeddings
    # One model at a time: the other comes when this one has gone.
    del model
    arbiter = _load(context, "reward", reward=True)
    limit = min(max_length, positions, arbiter.config.max_position_embeddings)
    texts = [
        [text for text in answers if fits(record, text, tokenizer, limit)]
        for record, answers in zip(prompts, texts, strict=True)
    ]
    flat = [(r, t) for r, answers in zip(prompts, texts, strict=True) for t in answers]
    values = iter(score(arbiter, [r for r, _ in flat], [t for _, t in flat]))
    ranked = [
        {
            **record,
            "candidates": [
                {"model": start, "completion": text, "reward": float(next(values))}
                for text in answers
            ],
        }
        for record, answers in zip(prompts, texts, strict=True)
        if answers
    ]
    rows = best_against_worst(ranked)
    rewards = [c["reward"] for r in ranked for c in r["candidates"]]
    _write(context, ranked, "candidates.jsonl")
    _write(context, rows)
    return {
        "samples": len(rewards),
        "reward": sum(rewards) / max(len(rewards), 1),
        "pairs": len(rows),
    }


def evaluate(context: Context, *, model: str) -> dict[str, Any]:
    """Answer the held-out prompts, and have the answers marked by the checker and both judges."""
    prompts = _records(context, "evaluation_prompts")
    answers = answer(_load(context, model, reward=False), prompts)
    judges = {
        "reward": _load(context, "reward", reward=True),
        "unused_reward": _load(context, "judge", reward=True),
    }
    marked = mark(prompts, answers, judges)
    _write(context, marked)
    return {
        metric: sum(float(row[metric]) for row in marked) / len(marked)
        for metric in ("correct", "right_language", "reward", "unused_reward")
        if all(metric in row for row in marked)
    }
