"""The verbs of the command line that work on files, outside a recipe."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from aya_jax.arbitrage.pairs import best_against_worst
from aya_jax.arbitrage.pool import answer_and_score, open_pool
from aya_jax.arbitrage.routers import route, routing_counts
from aya_jax.checkpoints.hugging_face import aya_to_hf, hf_to_aya
from aya_jax.data.files import (
    atomic_directory,
    atomic_write,
    commit_directory,
    fingerprint,
    told_plainly,
)
from aya_jax.data.mixture import mixture
from aya_jax.data.records import prompt_messages, read_records, write_records
from aya_jax.errors import AyaError
from aya_jax.evaluation.evaluate import answer, mark, summary
from aya_jax.generation.engine import sample
from aya_jax.model import load, load_inference, load_model_config
from aya_jax.models.architecture import require_decoder
from aya_jax.progress import Terminal
from aya_jax.recipe import job_settings, jobs
from aya_jax.recipe.fit import Work
from aya_jax.recipe.run_directory import MARK, open_work
from aya_jax.recipe.settings import effective_settings, parse_gin
from aya_jax.recipe.stages import code_version
from aya_jax.sharding.place import gin_place
from aya_jax.sharding.processes import by_lead, from_lead, is_lead, several
from aya_jax.training.loop import train
from aya_jax.training.optimizer import optimizer

PREFERENCE = ("prompt", "chosen", "rejected")
# What decides the result of a training verb besides its arguments.
SETTINGS = (
    train,
    optimizer,
    job_settings.activations,
    job_settings.lengths,
    job_settings.merge_checkpoints,
    job_settings.lora_settings,
    mixture,
    job_settings.dpo_objective,
    job_settings.reward_objective,
)


def read_gin(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Read gin files and bindings for one verb; see `settings.parse_gin`, also for its errors."""
    # Settings can be given of what has been imported.
    from aya_jax.recipe import compare  # noqa: F401

    parse_gin(files, bindings)


def train_verb(verb: str, model: str, data: str, out: str, reference: str | None) -> None:
    """`aya sft`, `aya dpo` and `aya reward`: records and a model in, a model directory out.

    What a killed attempt with the same models, records and settings left in `OUT.partial` is gone on
    from.
    """
    place = Path(out).absolute()
    by_lead(lambda: require_free(place))
    required = ("prompt", "completion") if verb == "sft" else PREFERENCE
    records = read_records(data, required=required)
    if verb != "sft":
        for path in filter(None, (model, reference)):
            require_decoder(load_model_config(path), f"aya {verb}: {path}")
    start = jobs.load_start(model, reward=None if verb == "reward" else False)
    other = load(reference, reward=False, place=gin_place()) if reference else None
    made_of = {
        "verb": verb,
        "models": [each.lineage.get("params_fingerprint") for each in (start, other) if each],
        "data": fingerprint(records),
        "settings": effective_settings(SETTINGS, ""),
        "code": code_version(),
    }
    work = place.with_name(f"{place.name}.partial")
    open_work(work, from_lead(fingerprint(made_of)))
    line = Terminal().stage(verb, 1, 1)
    job_work = Work(work, verb, line.update)
    outcome = "stopped"
    try:
        with told_plainly(place):
            if verb == "dpo":
                figures = jobs.dpo(start, records, work=job_work, reference=other)
            else:
                job = jobs.sft if verb == "sft" else jobs.reward
                figures = job(start, records, work=job_work)
            by_lead(lambda: commit(work, place))
        outcome = "  ".join(f"{k} {v:.4g}" for k, v in figures.items()) + f"  {out}"
    except AyaError:
        # Without a checkpoint or a whole model there is nothing to go on from.
        if is_lead() and not any((*work.glob("checkpoints/step_*"), *work.glob("lineage.json"))):
            shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        line.close(outcome)


def require_free(out: str | Path) -> None:
    """Raise `AyaError` unless there is nothing at `out` yet, and a folder can be made there."""
    place = Path(out).absolute()
    if place.exists():
        raise AyaError(f"{out}: exists already; remove it or give another --out")
    with told_plainly(place):
        place.parent.mkdir(parents=True, exist_ok=True)


def commit(work: Path, place: Path) -> None:
    """Rename a work folder to its place, without its mark."""
    commit_directory(work, place)
    (place / MARK).unlink()


def generate_verb(model: str, *, data: str | None, prompt: str | None, out: str | None) -> None:
    """`aya generate`: complete the prompts of a file, or one prompt on the terminal.

    Args:
      model: a model directory.
      data: a file of records; each gets a `completion`, or `completions` where `sample.samples` is
        above 1.
      prompt: in place of `data`.
      out: the file to write, with `data`.

    Raises:
      AyaError: neither a prompt nor both files are given, or one of them cannot be used.
    """
    loaded = load_inference(model, reward=False)
    if prompt is not None:
        turns = [[{"role": "user", "content": prompt}]]
        print(sample(loaded, turns)[0][0])
        return
    if data is None or out is None:
        raise AyaError("generate: give --prompt, or --data with --out")
    records = read_records(data)
    texts = sample(loaded, [prompt_messages(r) for r in records])
    rows = [
        {**record, "completion": each[0]} if len(each) == 1 else {**record, "completions": each}
        for record, each in zip(records, texts, strict=True)
    ]
    by_lead(lambda: str(write_records(out, rows)))


def arbitrate_verb(data: str, teachers: Sequence[str], reward: str, out: str) -> None:
    """`aya arbitrate`: candidates.jsonl, sft.jsonl and pairs.jsonl into a new folder.

    Prints how often each teacher was chosen, a line a language.

    Raises:
      AyaError: a prompt got no answer, `out` exists, or a file or model cannot be used.
    """
    records = read_records(data)
    by_lead(lambda: require_free(out))
    arbiter = load_inference(reward, reward=True)
    scored = answer_and_score(records, open_pool(list(teachers)), arbiter)
    routed = route(scored)

    def write() -> None:
        with atomic_directory(out) as folder:
            write_records(folder / "candidates.jsonl", scored)
            write_records(folder / "sft.jsonl", routed)
            write_records(folder / "pairs.jsonl", best_against_worst(scored))

    by_lead(write)
    for code, counts in routing_counts(routed).items():
        print(f"{code}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


def evaluate_verb(model: str, data: str, judge: str, opponent: str | None, out: str) -> None:
    """`aya evaluate`: the figures of one model as JSON, against an opponent if one is given.

    The judge's rewards are called `unused_reward`, as in `report.json`.

    Raises:
      AyaError: a file or model cannot be used.
    """
    records = read_records(data)
    judges = {"unused_reward": load_inference(judge, reward=True)}

    def marked(path: str) -> list[dict]:
        loaded = load_inference(path, reward=False)
        return mark(records, answer(loaded, records), judges)

    figures = summary(marked(model), marked(opponent) if opponent else None)
    by_lead(lambda: atomic_write(out, json.dumps(figures, indent=1, sort_keys=True) + "\n"))
    rows = [
        (name, *(f"{figure['overall'][key]:.3f}" for key in ("value", "low", "high")))
        for name, figure in figures.items()
    ]
    Terminal().table(f"{model} on {len(records)} prompts", ("metric", "value", "low", "high"), rows)


def convert_verb(direction: str, source: str, out: str, dtype: str | None) -> None:
    """`aya convert`: a Hugging Face directory to a model directory (`hf-to-aya`), or back.

    Raises:
      AyaError: `source` cannot be used, or `out` exists or cannot be written.
    """
    _require_one("convert")
    convert = {"hf-to-aya": hf_to_aya, "aya-to-hf": aya_to_hf}[direction]
    line = Terminal().stage("convert", 1, 1)
    outcome = "stopped"
    try:
        convert(source, out, dtype=dtype, progress=line.update)
        outcome = out
    finally:
        line.close(outcome)


def _require_one(verb: str) -> None:
    """Raise `AyaError` where several processes are to do what one does."""
    if several():
        raise AyaError(f"aya {verb} works in one process; start it without AYA_PROCESSES")


def report_verb(run_dir: str) -> None:
    """`aya report`: write the report of a finished run again."""
    from aya_jax.recipe.summary import write_summary

    print(by_lead(lambda: str(write_summary(Path(run_dir)))))


def chat_verb(model: str, lines: TextIO, out: TextIO) -> None:
    """`aya chat`: a conversation, one line a turn, until the end of the input."""
    _require_one("chat")
    loaded = load_inference(model, reward=False)
    turns: list[dict[str, str]] = []
    while True:
        out.write("> ")
        out.flush()
        line = lines.readline()
        if not line:
            out.write("\n")
            return
        if not line.strip():
            continue
        turns.append({"role": "user", "content": line.strip()})
        text = sample(loaded, [turns])[0][0]
        turns.append({"role": "assistant", "content": text})
        out.write(text + "\n")
