"""The Aya Expanse recipe (arXiv 2412.04261) as an ordered list of stages.

base -> teachers -> reward models -> arbitrage -> SFT a cluster -> merge -> offline DPO a cluster ->
merge -> three times (sample, rank, DPO a cluster, merge) -> evaluation.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gin

from aya_jax.arbitrage.arbiter import score
from aya_jax.arbitrage.pairs import best_against_worst
from aya_jax.arbitrage.pool import Answerer, answer_and_score, open_pool
from aya_jax.arbitrage.preferences import preference_pairs
from aya_jax.arbitrage.routers import route, routing_counts
from aya_jax.data import atlas, sources
from aya_jax.data.files import fingerprint_file
from aya_jax.data.languages import LANGUAGES, language_clusters
from aya_jax.data.records import Record, prompt_messages, read_records, write_records
from aya_jax.data.tokenizer import Tokenizer, train_tokenizer
from aya_jax.errors import AyaError, nearest
from aya_jax.evaluation.evaluate import answer, mark
from aya_jax.generation.engine import sample
from aya_jax.merging.merge import merge
from aya_jax.model import load
from aya_jax.models.config import decoder_config
from aya_jax.recipe import jobs
from aya_jax.recipe.stages import Context, Stage
from aya_jax.training.loop import train

RECORDS = "records.jsonl"
# Model directories live in a folder of this name where a stage makes more than a model.
SOURCES = (sources.records, atlas.build)
TRAINING = (train, jobs.lengths, jobs.merge_checkpoints)
SAMPLING = (sample, score)

# Which router makes the SFT data of which model.
ROUTED = {
    "arbitrage_sft": "reward",
    "single_teacher": "single",
    "random_routing": "random",
    "fixed_routing": "fixed",
}
MERGES = ("linear", "slerp", "ties", "dare_ties")


def _hash(*parts: object) -> int:
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def _update(context: Context) -> jobs.Update:
    return lambda done, total, figures: context.line.update(done, total, figures)


def _records(context: Context, name: str) -> list[Record]:
    return read_records(context.inputs[name] / RECORDS)


def _tokenizer(context: Context) -> dict[str, Any]:
    lines = sources.text()
    tokenizer = train_tokenizer(lines)
    tokenizer.save(context.directory)
    tokens = sum(len(tokenizer.encode(line)) for line in lines)
    characters = sum(map(len, lines))
    return {"pieces": tokenizer.vocab_size, "characters_per_token": characters / tokens}


def _base(context: Context) -> dict[str, Any]:
    tokenizer = Tokenizer.load(context.inputs["tokenizer"])
    return jobs.pretrain(
        sources.text(),
        tokenizer,
        work=context.directory,
        stage=context.name,
        update=_update(context),
        events=context.events,
    )


def _own_records(context: Context) -> dict[str, Any]:
    rows = sources.records()
    write_records(context.directory / RECORDS, rows)
    return {"prompts": len(rows)}


def _teacher(context: Context, *, base: Path | str, languages: Sequence[str]) -> dict[str, Any]:
    return jobs.sft(
        load(context.inputs.get("base", base), reward=False),
        sources.records(languages=languages),
        work=context.directory,
        stage=context.name,
        update=_update(context),
        events=context.events,
    )


def _reward(context: Context, *, base: Path | str, half: int) -> dict[str, Any]:
    """Train a reward model on the pairs of one half of the prompts, a tenth of it held out."""
    rows = [r for r in sources.records() if _hash("half", r["prompt"]) % 2 == half]
    pairs = preference_pairs(rows)
    held_out = [p for p in pairs if _hash("held out", p["prompt"]) % 10 == 0]
    learnt = [p for p in pairs if _hash("held out", p["prompt"]) % 10]
    figures = jobs.reward(
        load(context.inputs.get("base", base), reward=False),
        learnt,
        work=context.directory,
        stage=context.name,
        update=_update(context),
        events=context.events,
    )
    if held_out:
        accuracy = jobs.pair_accuracy(load(context.directory, reward=True), held_out)
        figures["held_out_accuracy"] = accuracy
    return figures


def _candidates(
    context: Context, *, reward: Path | str, teachers: Sequence[str], files: Mapping[str, str]
) -> dict[str, Any]:
    """Every teacher answers every prompt; a teacher whose answers are kept already is not asked."""
    prompts = _records(context, "prompts")
    pool: dict[str, Answerer] = {}
    for name in teachers:
        pool.update(open_pool({name: context.inputs[f"teacher.{name}"]}))
    if files:
        pool.update(open_pool(files))
    shards = context.directory / "answers"
    shards.mkdir(exist_ok=True)

    def kept(name: str, ask: Answerer) -> Answerer:
        def answer_once(records: Sequence[Record]) -> list[str | None]:
            shard = shards / f"{name}.jsonl"
            if not shard.exists():
                texts = ask(records)
                rows = [
                    {"prompt": r["prompt"], "completion": t}
                    for r, t in zip(records, texts, strict=True)
                ]
                write_records(shard, rows)
            context.line.update(len(list(shards.iterdir())), len(pool), note=name)
            return [row["completion"] for row in _raw(shard)]

        return answer_once

    arbiter = load(context.inputs.get("reward", reward), reward=True)
    rows = answer_and_score(prompts, {n: kept(n, ask) for n, ask in pool.items()}, arbiter)
    write_records(context.directory / RECORDS, rows)
    return {"prompts": len(rows), "teachers": len(pool)}


def _raw(path: Path) -> list[Record]:
    import json

    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _route(context: Context, *, router: str) -> dict[str, Any]:
    routed = route(_records(context, "candidates"), router=router)
    write_records(context.directory / RECORDS, routed)
    return {"completions": len(routed), "routing": routing_counts(routed)}


def _pairs(context: Context) -> dict[str, Any]:
    pairs = best_against_worst(_records(context, "candidates"))
    write_records(context.directory / RECORDS, pairs)
    return {"pairs": len(pairs)}


def _in(records: Sequence[Record], languages: Sequence[str]) -> list[Record]:
    return [r for r in records if r.get("language", "").split("-")[0] in languages]


def _sft(
    context: Context, *, base: Path | str, data: str, languages: Sequence[str]
) -> dict[str, Any]:
    return jobs.sft(
        load(context.inputs.get("base", base), reward=False),
        _in(_records(context, data), languages),
        work=context.directory,
        stage=context.name,
        update=_update(context),
        events=context.events,
    )


def _dpo(context: Context, *, start: str, data: str, languages: Sequence[str]) -> dict[str, Any]:
    return jobs.dpo(
        load(context.inputs[start], reward=False),
        _in(_records(context, data), languages),
        work=context.directory,
        stage=context.name,
        update=_update(context),
        events=context.events,
    )


def _merge(
    context: Context, *, parts: Sequence[str], start: str, base: Path | str, **settings: Any
) -> dict[str, Any]:
    """Merge the cluster models; `start` is what they were trained from."""
    merge(
        [context.inputs[part] for part in parts],
        out=context.directory / "model",
        base=context.inputs.get(start, base),
        stage=context.name,
        **settings,
    )
    for path in (context.directory / "model").iterdir():
        path.rename(context.directory / path.name)
    (context.directory / "model").rmdir()
    return {"models": len(parts)}


def _online_samples(context: Context, *, start: str, reward: Path | str) -> dict[str, Any]:
    """Several completions for each prompt from the newest model, ranked; best against worst."""
    model = load(context.inputs[start], reward=False)
    prompts = _records(context, "prompts")
    texts = sample(
        model.config, model.params, model.tokenizer, [prompt_messages(r) for r in prompts]
    )
    flat = [(r, t) for r, answers in zip(prompts, texts, strict=True) for t in answers]
    arbiter = load(context.inputs.get("reward", reward), reward=True)
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
    ]
    pairs = best_against_worst(ranked)
    rewards = [c["reward"] for r in ranked for c in r["candidates"]]
    write_records(context.directory / RECORDS, pairs)
    return {"samples": len(rewards), "reward": sum(rewards) / len(rewards), "pairs": len(pairs)}


def _evaluate(
    context: Context, *, model_name: str, models: Mapping[str, Path | str]
) -> dict[str, Any]:
    prompts = _records(context, "evaluation_prompts")
    model = load(context.inputs.get(model_name, models.get(model_name, "")), reward=False)
    judges = {
        "reward": load(context.inputs.get("reward", models.get("reward", "")), reward=True),
        "unused_reward": load(context.inputs.get("judge", models.get("judge", "")), reward=True),
    }
    marked = mark(prompts, answer(model, prompts), judges)
    write_records(context.directory / RECORDS, marked)
    figures: dict[str, Any] = {}
    for metric in ("correct", "right_language", "reward", "unused_reward"):
        if metric in marked[0]:
            figures[metric] = sum(float(row[metric]) for row in marked) / len(marked)
    return figures


@gin.configurable
def expanse(
    *,
    base_model: str | None = None,
    reward_model: str | None = None,
    judge_model: str | None = None,
    teachers: Mapping[str, Sequence[str]] | None = None,
    teacher_files: Mapping[str, str] | None = None,
    iterations: int = 3,
    baselines: Sequence[str] = ("single_teacher", "random_routing"),
    merges: Sequence[str] = (),
    mixed: bool = False,
    online_only: bool = False,
) -> list[Stage]:
    """Return the stages of the recipe.

    Args:
      base_model: a model directory to start from; if absent a tokenizer and a small base model are
        trained (scopes `tokenizer` and `base`).
      reward_model, judge_model: directories of reward models; trained if absent (scopes `reward`
        and `judge`, the judge on other prompts).
      teachers: name to languages of the specialists that are trained (scope `teachers/NAME`).
      teacher_files: name to a model directory, or to a JSONL file of recorded completions.
      iterations: of online DPO.
      baselines: models to compare with, from `single_teacher`, `random_routing`, `fixed_routing`.
      merges: other merge methods to compare on the SFT models of the clusters.
      mixed: whether to compare with one model trained on all clusters' data together.
      online_only: whether to compare with online DPO straight from the SFT model.

    Raises:
      AyaError: an unknown baseline or merge method, or no teacher at all.
    """
    for given, known in ((baselines, ROUTED), (merges, MERGES)):
        for name in given:
            if name not in known:
                raise AyaError(f"expanse: unknown name {name!r}{nearest(name, known)}")
    teachers, files = dict(teachers or {}), dict(teacher_files or {})
    if not teachers and not files:
        raise AyaError("expanse: there is no teacher; set expanse.teachers or .teacher_files")
    clusters = language_clusters()
    own = {"base": base_model, "reward": reward_model, "judge": judge_model}
    stages: list[Stage] = []

    def add(
        name: str,
        run: Callable[..., dict[str, Any]],
        inputs: Sequence[str] = (),
        *,
        scope: str,
        uses: Sequence[Callable[..., Any]] = (),
        **arguments: Any,
    ) -> str:
        """Add a stage; an input that is the user's own model enters by its path instead."""
        outside = {i: own[i] for i in inputs if own.get(i)}
        extra = {k: v for k, v in arguments.items() if isinstance(v, (str, int, list, tuple, dict))}
        for key, path in {**outside, **(files if run is _candidates else {})}.items():
            extra[f"fingerprint of {key}"] = _path_fingerprint(str(path))
        kept = tuple(i for i in inputs if i not in outside)
        stage = Stage(name, partial(run, **arguments), kept, scope, tuple(uses), extra)
        stages.append(stage)
        return name

    if not base_model:
        text = (sources.text, atlas.text)
        add("tokenizer", _tokenizer, scope="tokenizer", uses=(*text, train_tokenizer))
        start = (*text, *TRAINING, decoder_config, jobs.new_model)
        add("base", _base, ["tokenizer"], scope="base", uses=start)
    base = base_model or ""
    for name, languages in teachers.items():
        add(
            f"teacher.{name}",
            _teacher,
            ["base"],
            scope=f"teachers/{name}",
            uses=(*SOURCES, *TRAINING),
            base=base,
            languages=tuple(languages) or tuple(LANGUAGES),
        )
    for half, name in enumerate(("reward", "judge")):
        if not own[name]:
            add(
                name,
                _reward,
                ["base"],
                scope=name,
                uses=(*SOURCES, preference_pairs, *TRAINING, jobs.reward_objective, score),
                base=base,
                half=half,
            )
    add("prompts", _own_records, scope="prompts", uses=SOURCES)
    add("evaluation_prompts", _own_records, scope="evaluation_prompts", uses=SOURCES)
    add(
        "candidates",
        _candidates,
        ["prompts", "reward", *(f"teacher.{name}" for name in teachers)],
        scope="arbitrage",
        uses=SAMPLING,
        reward=reward_model or "",
        teachers=tuple(teachers),
        files=files,
    )

    def trained(
        model: str,
        run: Callable[..., dict[str, Any]],
        data: str,
        start: str,
        scope: str,
        uses: Sequence[Callable[..., Any]],
    ) -> None:
        """Add one training a cluster, and their merge under the model's name."""
        parts = []
        for cluster, languages in clusters.items():
            name = f"{model}.{cluster}"
            arguments: dict[str, Any] = {"base": base} if run is _sft else {"start": start}
            add(
                name,
                run,
                [start, data],
                scope=f"{scope}/{cluster}",
                uses=uses,
                data=data,
                languages=languages,
                **arguments,
            )
            parts.append(name)
        inputs = [*parts, start]
        add(model, _merge, inputs, scope=scope, uses=(merge,), parts=parts, start=start, base=base)

    evaluated = ["base"] if not base_model else []
    routed = {name: ROUTED[name] for name in (*baselines, "arbitrage_sft")}
    for model, router in routed.items():
        data = f"route.{router}"
        add(data, _route, ["candidates"], scope="arbitrage", uses=(route,), router=router)
        trained(model, _sft, data, "base", "sft", TRAINING)
        evaluated.append(model)
    for method in merges:
        parts = [f"arbitrage_sft.{cluster}" for cluster in clusters]
        model = f"{method}_merge"
        add(
            model,
            _merge,
            [*parts, "base"],
            scope="sft",
            uses=(merge,),
            parts=parts,
            start="base",
            base=base,
            method=method,
        )
        evaluated.append(model)
    if mixed:
        add(
            "mixed_sft",
            _sft,
            ["base", "route.reward"],
            scope="mixed",
            uses=TRAINING,
            base=base,
            data="route.reward",
            languages=tuple(LANGUAGES),
        )
        evaluated.append("mixed_sft")
    preference = (*TRAINING, jobs.dpo_objective)
    add("pairs", _pairs, ["candidates"], scope="offline_dpo", uses=(best_against_worst,))
    trained("offline_dpo", _dpo, "pairs", "arbitrage_sft", "offline_dpo", preference)
    evaluated.append("offline_dpo")

    def online(family: str, first: str) -> None:
        newest = first
        for i in range(1, iterations + 1):
            model = f"{family}_{i}"
            scope = f"online_dpo/iteration_{i}"
            data = f"{model}.samples"
            add(
                data,
                _online_samples,
                [newest, "prompts", "reward"],
                scope=scope,
                uses=(*SAMPLING, best_against_worst),
                start=newest,
                reward=reward_model or "",
            )
            trained(model, _dpo, data, newest, scope, preference)
            evaluated.append(model)
            newest = model

    online("online_dpo", "offline_dpo")
    if online_only:
        online("online_only", "arbitrage_sft")
    for name in evaluated:
        add(
            f"evaluate.{name}",
            _evaluate,
            [name, "evaluation_prompts", "reward", "judge"],
            scope="evaluation",
            uses=SAMPLING,
            model_name=name,
            models={k: v for k, v in own.items() if v},
        )
    return stages


def _path_fingerprint(path: str) -> str:
    """Return what tells one state of a user's file or model directory from another."""
    place = Path(path)
    if place.is_file():
        return fingerprint_file(place)
    lineage = place / "lineage.json"
    if lineage.is_file():
        return fingerprint_file(lineage)
    raise AyaError(f"{path}: is neither a file nor a model directory; check the path")
