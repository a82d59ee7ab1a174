"""A language model, a reward model and files of records, all of a size of moments, and settings for them."""

import shutil
from pathlib import Path

import jax
import numpy as np

from aya_jax.checkpoints.model_directory import save_model
from aya_jax.data import atlas
from aya_jax.data.records import write_records
from aya_jax.data.tokenizer import train_tokenizer
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import init_params

# What every call of a verb gets, so that few programs are compiled and they are small.
SMALL = (
    "train.steps = 2",
    "train.batch_size = 2",
    "train.checkpoint_every = 1",
    "lengths.max_length = 64",
    "lengths.multiple = 64",
    "sample.max_new_tokens = 4",
    "sample.batch_size = 4",
    "sample.prompt_multiple = 64",
    "score.batch_size = 4",
    "score.multiple = 64",
)
LANGUAGES = ("de", "en", "ru")


class Shelf:
    """Files that all tests read and none changes."""

    def __init__(self, path: Path):
        self.path = path
        atlas_records = atlas.build(
            split="train", languages=LANGUAGES, kinds=("weekday_name",), per_language=2, seed=1
        )
        fields = ("id", "language", "prompt", "completion")
        self.records = [{name: row[name] for name in fields} for row in atlas_records]
        pairs = [
            {**row, "chosen": row["completion"], "rejected": row["language"]}
            for row in self.records
        ]
        self.prompts = write_records(
            path / "prompts.jsonl",
            [{k: v for k, v in row.items() if k != "completion"} for row in self.records],
        )
        self.sft = write_records(path / "sft.jsonl", self.records)
        self.pairs = write_records(path / "pairs.jsonl", pairs)
        lines = atlas.text(languages=LANGUAGES, kinds=("weekday_name", "month_name"))
        tokenizer = train_tokenizer(lines, vocab_size=500)
        (path / "tokenizer").mkdir()
        tokenizer.save(path / "tokenizer")
        self.config = DecoderConfig(
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
        self.model = self._save("model", 0)
        self.other = self._save("other", 1)
        self.reward = self._save("reward", 2, reward=True)

    def _save(self, name, seed, *, reward=False):
        shapes = jax.eval_shape(
            lambda: init_params(self.config, jax.random.key(0), reward_head=reward)
        )
        rng = np.random.default_rng(seed)
        params = jax.tree.map(
            lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(leaf.dtype), shapes
        )
        return save_model(
            self.path / name,
            config=self.config.to_hf(reward=reward),
            params=params,
            lineage={"stage": name, "kind": "test", "parents": []},
            tokenizer_dir=self.path / "tokenizer",
        )

    def copy(self, name, place):
        """Return a copy of one of the model directories, to be damaged."""
        return Path(shutil.copytree(self.path / name, place))
