"""What the faults strike: small trainings, a sampling, and a whole recipe of moments."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MICRO = ROOT / "tests" / "recipe" / "micro.gin"
LANGUAGES = ("de", "en", "ru")
SETTINGS = (
    "train.steps = 8",
    "train.batch_size = 2",
    "train.checkpoint_every = 2",
    "train.log_every = 1",
    "lengths.max_length = 64",
    "lengths.multiple = 64",
    "sample.max_new_tokens = 4",
    "sample.batch_size = 4",
    "sample.prompt_multiple = 64",
    "score.batch_size = 4",
    "score.multiple = 64",
)
# Files whose bytes are not the same in every run: those that Orbax writes, whose content is compared as
# arrays, and what is kept of incidents.
NOT_COMPARED = ("params", "incidents")


def make_shelf(shelf: Path) -> None:
    """Make the models and records that all subjects read and none changes."""
    from aya_jax.checkpoints.model_directory import save_model
    from aya_jax.data import atlas
    from aya_jax.data.records import write_records
    from aya_jax.data.tokenizer import train_tokenizer
    from aya_jax.models.config import DecoderConfig

    rows = atlas.build(
        split="train", languages=LANGUAGES, kinds=("weekday_name",), per_language=4, seed=1
    )
    records = [{k: row[k] for k in ("id", "language", "prompt", "completion")} for row in rows]
    pairs = [{**row, "chosen": row["completion"], "rejected": row["language"]} for row in records]
    prompts = [{k: v for k, v in row.items() if k != "completion"} for row in records]
    shelf.mkdir()
    for name, content in (("sft", records), ("pairs", pairs), ("prompts", prompts)):
        write_records(shelf / f"{name}.jsonl", content)
    tokenizer = train_tokenizer(
        atlas.text(languages=LANGUAGES, kinds=("weekday_name", "month_name")), vocab_size=500
    )
    (shelf / "tokenizer").mkdir()
    tokenizer.save(shelf / "tokenizer")
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        logit_scale=1.0,
        max_position_embeddings=96,
        pad_token_id=tokenizer.pad_id,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    for number, name in enumerate(("model", "other", "reward")):
        save_model(
            shelf / name,
            config=config.to_hf(reward=name == "reward"),
            params=_random_params(config, number, reward=name == "reward"),
            lineage={"stage": name, "kind": "test", "parents": []},
            tokenizer_dir=shelf / "tokenizer",
        )


def _random_params(config, seed, *, reward):
    import jax

    from aya_jax.models.decoder import init_params

    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0), reward_head=reward))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(leaf.dtype), shapes)


@dataclass(frozen=True)
class Subject:
    """A command that works in a folder of its own.

    Attributes:
      name: of the subject.
      words: the command after `aya`; `SHELF` and `FOLDER` stand for the two folders.
      result: what it makes, in the folder.
      processes: how many work at it together.
    """

    name: str
    words: tuple[str, ...]
    result: str = "out"
    processes: int = 1

    def command(self, shelf: Path, folder: Path) -> list[str]:
        """Return the command after `aya`."""
        words = [w.replace("SHELF", str(shelf)).replace("FOLDER", str(folder)) for w in self.words]
        settings = () if self.name == "recipe" else SETTINGS
        return [*words, *(word for binding in settings for word in ("--gin_bindings", binding))]

    def content(self, folder: Path) -> dict[str, str]:
        """Return what the command made, by file; two runs are equal if and only if this is."""
        from aya_jax.checkpoints.model_directory import load_params
        from aya_jax.checkpoints.store import leaf_checksums

        made, content = folder / self.result, {}
        for file in sorted(path for path in made.rglob("*") if path.is_file()):
            name = file.relative_to(made)
            if name.parts[0] in ("metrics", "lock", "report.html", "run.json"):
                continue
            if set(name.parts) & {*NOT_COMPARED, "params.checksums.json"}:
                continue
            data = file.read_bytes()
            if name.name == "report.json":
                report = json.loads(data)
                for stage in report["stages"]:
                    stage.pop("seconds")
                data = json.dumps(report, sort_keys=True).encode()
            content[name.as_posix()] = hashlib.sha256(data).hexdigest()
        for params in sorted(made.rglob("params")):
            sums = leaf_checksums(load_params(params.parent, on_host=True))
            content[params.relative_to(made).as_posix()] = json.dumps(sums)
        return content


def _training(verb: str, data: str) -> Subject:
    return Subject(
        verb,
        (verb, "--model", "SHELF/model", "--data", f"SHELF/{data}.jsonl", "--out", "FOLDER/out"),
    )


SFT, DPO = _training("sft", "sft"), _training("dpo", "pairs")
ARBITRATE = Subject(
    "arbitrate",
    (
        *("arbitrate", "--data", "SHELF/prompts.jsonl", "--teachers", "SHELF/model", "SHELF/other"),
        *("--reward", "SHELF/reward", "--out", "FOLDER/out"),
    ),
)
RECIPE = Subject("recipe", ("run", str(MICRO), "--run_dir", "FOLDER/run"), result="run")
TOGETHER = replace(SFT, name="sft of two processes", processes=2)
