"""How full packed rows are on real multilingual data, and how much faster SFT is with them than padded.

    python tests/benchmarks/packing.py DATA/instruct.jsonl.gz DATA/teacher_pool.jsonl.gz

Records are those of the files given, with `prompt` and `completion`. A tokenizer is trained on a part of
them. The ratio is of real tokens a second of training the same documents on this machine: packed, against
rows of one document padded to the longest of their batch.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.data.examples import Example, Rows, best_fit, pack, pad, pad_length, tokenize_all
from aya_jax.data.files import stable_hash
from aya_jax.data.records import Record, read_records
from aya_jax.data.tokenizer import train_tokenizer
from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import init_params
from aya_jax.sharding.mesh import device_mesh, logical_rules
from aya_jax.training.objectives import SFT
from aya_jax.training.optimizer import optimizer
from aya_jax.training.step import train_program

LENGTHS = (1024, 2048, 8192)
VOCABULARY = 8192
# What the speeds are measured with.
LENGTH, ROWS, MULTIPLE, REPEATS = 1024, 4, 128, 3


def examples_of(paths: list[str]) -> list[Example]:
    """Read and tokenise the records of files."""
    records: list[Record] = []
    for path in paths:
        records += read_records(path, required=("prompt", "completion"))
    some = sorted(records, key=lambda r: stable_hash(r["prompt"], r["completion"]))[:3000]
    lines = [r[field][:300] for r in some for field in ("prompt", "completion")]
    tokenizer = train_tokenizer(lines, vocab_size=VOCABULARY, character_coverage=0.9995)
    return list(tokenize_all(records, tokenizer, field="completion", max_length=1 << 30))


def size_of(example: Example) -> int:
    """Return an example's tokens."""
    return len(example.prompt) + len(example.completion)


def shuffled(examples: list[Example]) -> list[Example]:
    """Return examples in an order of no meaning."""
    return [examples[i] for i in np.random.default_rng(0).permutation(len(examples))]


def efficiencies(examples: list[Example], length: int) -> dict[str, float]:
    """Return the shares of tokens that are no padding, of documents that fit rows of `length`."""
    sizes = [size for size in map(size_of, shuffled(examples)) if size <= length]
    begin = time.perf_counter()
    rows = best_fit(sizes, length)
    seconds = time.perf_counter() - begin
    batches = [sizes[i : i + 16] for i in range(0, len(sizes), 16)]
    longest = sum(len(batch) * max(batch) for batch in batches)
    return {
        "documents": len(sizes),
        "rows": len(rows),
        "packed": sum(sizes) / (len(rows) * length),
        "padded to the longest of 16": sum(sizes) / longest,
        "padded to the row": sum(sizes) / (len(sizes) * length),
        "seconds of packing": seconds,
    }


def speeds(examples: list[Example]) -> dict[str, float]:
    """Return real tokens a second of SFT steps on the same documents, packed and padded."""
    few = [e for e in shuffled(examples) if size_of(e) <= LENGTH][:96]
    rows = pack(few, length=LENGTH)
    batches: dict[str, list[Rows]] = {
        "packed": [
            Rows(*(array[i : i + ROWS] for array in rows))
            for i in range(0, len(rows.tokens) - ROWS + 1, ROWS)
        ],
        # As many tokens a batch at most, and a few lengths so that few programs are compiled.
        "padded": [],
    }
    for i in range(0, len(few), 16):
        part = few[i : i + 16]
        length = pad_length(map(size_of, part), multiple=MULTIPLE, max_length=LENGTH)
        batches["padded"].append(pad(part, length=length))
    config = DecoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        logit_scale=1.0,
        max_position_embeddings=LENGTH,
    )
    program = train_program(SFT(config), optimizer(), device_mesh(), logical_rules())
    state = program.init(init_params(config, jax.random.key(0)))
    found: dict[str, list[float]] = {name: [] for name in batches}
    for repeat in range(REPEATS + 1):
        for name, members in batches.items():
            placed = [jax.device_put(rows._asdict(), program.batch_sharding) for rows in members]
            jax.block_until_ready(placed)
            begin = time.perf_counter()
            for batch in placed:
                state, metrics = program.step(state, batch, jnp.float32(1e-4))
            jax.block_until_ready(metrics)
            seconds = time.perf_counter() - begin
            tokens = sum(int((rows.segment_ids > 0).sum()) for rows in members)
            # The first time compiles.
            if repeat:
                found[name].append(tokens / seconds)
    speeds = {name: float(np.median(values)) for name, values in found.items()}
    return {**speeds, "ratio": speeds["packed"] / speeds["padded"]}


def main() -> None:
    """Print what was measured as JSON, a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", help="JSONL files of records")
    examples = examples_of(parser.parse_args().data)
    for length in LENGTHS:
        print(json.dumps({"length": length, **efficiencies(examples, length)}), flush=True)
    print(json.dumps({"tokens a second": speeds(examples)}))


if __name__ == "__main__":
    main()
