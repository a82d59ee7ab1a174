"""Merging on the disk: seconds and peak memory, beside a plain copy of the same bytes and beside mergekit.

    python tests/benchmarks/merging.py FOLDER [--mergekit PYTHON] [--page docs/merging.md]

Makes a base and five models under FOLDER, bfloat16, 2 GB each: an eighth of Aya Expanse 8B, in matrices of its shapes.
The copy reads all that a merge reads, and writes one model. Each merge is a process, measured from its start to its end;
its peak memory is VmHWM. Three copies and three merges take turns, and the fastest of each counts. Before each of them the
files of the models are dropped from the page cache, and what is written is on the disk when the clock stops. With
--mergekit, a Python that has it, it merges the same models in Hugging Face's form, and so do we. At most 21 GB of the
disk are used at a time.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from page import put

from aya_jax.checkpoints.hugging_face import by_leaf, hf_to_aya
from aya_jax.checkpoints.slices import Leaf
from aya_jax.data.files import atomic_write
from aya_jax.data.tokenizer import train_tokenizer
from aya_jax.merging.outputs import HuggingFace
from aya_jax.merging.sources import leaf_shape
from aya_jax.models.architecture import hf_tensors
from aya_jax.models.config import DecoderConfig

BF16 = np.dtype(ml_dtypes.bfloat16)
# mergekit wants norms of Cohere's queries and keys that the 8B has not: the names are Llama's.
LLAMA = {"model_type": "llama", "tie_word_embeddings": True, "eos_token_id": 2, "bos_token_id": 1}
SIZES = {
    # An eighth of the layers, an eighth of the rows of the vocabulary.
    "full": DecoderConfig(32768, 4096, 14336, 4, 32, 8, **LLAMA),
    "tiny": DecoderConfig(512, 64, 160, 2, 4, 2, **LLAMA),
}
MODELS = 5
DENSITY = 0.5
READ = 16 << 20
# Seconds between dropping the files and the start. What a virtual machine frees goes back to its host in that time: a
# copy right after another, which finds that memory still there, takes half as long as one on its own.
SETTLED = 5.0
HEAD = """\
| models | merge | a copy, s | ours, s | of the copy's speed | MB/s | peak memory, GiB | mergekit, s | its peak, GiB |
|---|---|---|---|---|---|---|---|---|"""

# Runs a program, a file or a module, and then says what the process's peak memory was.
PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
try:
    run(sys.argv[0], run_name="__main__")
finally:
    with open("/proc/self/status") as status:
        print("VmHWM", next(line for line in status if line.startswith("VmHWM")).split()[1])
"""


def make(place: Path, config: DecoderConfig, seed: int) -> Path:
    """Make a Hugging Face directory: a base of seed 0, or what was trained from it."""
    place.mkdir()
    tensors = hf_tensors(config)
    leaves = {
        path: Leaf(BF16, leaf_shape(each), len(each[0].index))
        for path, each in by_leaf(tensors).items()
    }
    output = HuggingFace(place, leaves, tensors)
    output.make()
    output.open()
    noise = np.random.default_rng(1).normal(size=(1 << 22) + 1021).astype(np.float32)

    def drawn(*at: int, count: int) -> np.ndarray:
        return np.resize(np.roll(noise, int(np.random.default_rng(at).integers(len(noise)))), count)

    for number, tensor in enumerate(tensors):
        size, grain = prod(tensor.part), output.grain(tensor)
        for start in range(0, size, grain):
            count = min(grain, size - start)
            entries = drawn(number, start, count=count) * np.float32(0.02)
            if seed:
                entries += drawn(number, start, seed, count=count) * np.float32(1e-3)
            output.write(tensor, start, entries.astype(BF16))
    output.seal(tensors)
    output.finish({})
    atomic_write(place / "config.json", json.dumps({**config.to_hf(), "torch_dtype": "bfloat16"}))
    train_tokenizer(["some words", "and others"] * 9, vocab_size=290).save(place)
    return place


def files_of(model: Path) -> list[Path]:
    """Return the files of a model."""
    return [path for path in sorted(model.rglob("*")) if path.is_file()]


def bytes_of(model: Path) -> int:
    """Return the bytes of a model's files."""
    return sum(path.stat().st_size for path in files_of(model))


def forget(models: list[Path]) -> None:
    """Drop the files of models from the page cache."""
    for path in (path for model in models for path in files_of(model)):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def settle(models: list[Path]) -> None:
    """Bring the machine to where neither a copy nor a merge has an advantage of what was before."""
    forget(models)
    time.sleep(SETTLED)


def copy(models: list[Path], out: Path) -> float:
    """Read the files of models and write those of the first; return the seconds."""
    settle(models)
    buffer = memoryview(bytearray(READ))
    out.mkdir()
    begin = time.perf_counter()
    for model in models:
        for number, path in enumerate(files_of(model)):
            with open(path, "rb", buffering=0) as source, open(out / str(number), "ab") as target:
                while got := source.readinto(buffer):
                    if model == models[0]:
                        target.write(buffer[:got])
                target.flush()
                os.fsync(target.fileno())
    seconds = time.perf_counter() - begin
    shutil.rmtree(out)
    return seconds


class Measured(NamedTuple):
    """What a process took: seconds from its start to its end, and its peak resident memory in bytes."""

    seconds: float
    peak: int


def measured(python: str, command: list[object], models: list[Path], out: Path) -> Measured:
    """Run a program of Python's that makes `out` of models; it is removed again."""
    settle(models)
    begin = time.perf_counter()
    ended = subprocess.run([python, "-c", PEAK, *map(str, command)], capture_output=True, text=True)
    if out.exists():
        forget([out])
    seconds = time.perf_counter() - begin
    if ended.returncode:
        raise SystemExit(f"{command} ended with status {ended.returncode}:\n{ended.stderr}")
    shutil.rmtree(out)
    return Measured(seconds, int(ended.stdout.split()[-1]) * 1024)


def ours(models: list[Path], base: Path | None, method: str, out: Path, form: str) -> Measured:
    """Merge with this project."""
    read = models if base is None else [*models, base]
    script = Path(__file__).with_name("merge_once.py")
    command = [script, out, form, method, DENSITY, base or "-", *models]
    return measured(sys.executable, command, read, out)


def theirs(python: str, models: list[Path], base: Path | None, method: str, out: Path) -> Measured:
    """Merge with mergekit."""
    own = {"weight": 1 / len(models)} | ({"density": DENSITY} if base else {})
    told: dict[str, object] = {
        "merge_method": method,
        "dtype": "bfloat16",
        "models": [{"model": str(path), "parameters": own} for path in models],
    }
    if base is not None:
        told["base_model"] = str(base)
    config = out.with_suffix(".yml")
    config.write_text(json.dumps(told))
    command = ["mergekit.scripts.run_yaml", config, out]
    return measured(python, command, models if base is None else [*models, base], out)


def rows(
    place: Path, models: list[Path], base: Path, form: str, mergekit: str | None
) -> Iterator[str]:
    """Measure the merges of models in one form, and yield the rows of the table."""
    for method, start in (("linear", None), ("ties", base)):
        read = models if start is None else [*models, start]
        size = sum(map(bytes_of, read)) + bytes_of(models[0])
        turns = [
            (copy(read, place / "copy"), ours(models, start, method, place / "merged", form))
            for _ in range(3)
        ]
        plain = min(seconds for seconds, _ in turns)
        merged = Measured(
            min(each.seconds for _, each in turns), max(each.peak for _, each in turns)
        )
        other = theirs(mergekit, models, start, method, place / "merged") if mergekit else None
        cells = [
            {"aya": "ours, a file a chunk", "hugging_face": "Hugging Face's"}[form],
            method,
            f"{plain:.1f}",
            f"{merged.seconds:.1f}",
            f"{plain / merged.seconds:.2f}",
            f"{size / merged.seconds / 1e6:,.0f}",
            f"{merged.peak / 2**30:.2f}",
            f"{other.seconds:.1f}" if other else "",
            f"{other.peak / 2**30:.2f}" if other else "",
        ]
        yield f"| {' | '.join(cells)} |"


def table(place: Path, config: DecoderConfig, mergekit: str | None) -> Iterator[str]:
    """Make the models, and yield the lines of what is measured."""
    models = [make(place / str(seed), config, seed) for seed in range(MODELS + 1)]
    load = os.getloadavg()[0]
    yield (
        f"{MODELS} models and a base of {bytes_of(models[0]) / 1e9:.2f} GB each, none of them in the page cache; "
        f"{os.cpu_count()} cores, a load of {load:.1f} before, "
        f"Python {platform.python_version()}, {datetime.date.today()}."
    )
    yield ""
    yield HEAD
    yield from rows(place, models[1:], models[0], "hugging_face", mergekit)
    for number, path in enumerate(models):
        models[number] = hf_to_aya(path, path.with_suffix(".aya"))
        shutil.rmtree(path)
    yield from rows(place, models[1:], models[0], "aya", None)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the models, which are removed at the end")
    parser.add_argument("--mergekit", metavar="PYTHON", help="a Python that has mergekit")
    parser.add_argument("--page", type=Path, help="where the table goes, printed alone if absent")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    args = parser.parse_args()
    place = args.folder / "merging"
    place.mkdir(parents=True)
    try:
        lines = []
        for line in table(place, SIZES[args.size], args.mergekit):
            print(line, flush=True)
            lines.append(line)
    finally:
        shutil.rmtree(place)
    if args.page:
        put(args.page, "merging", "\n".join(lines))


if __name__ == "__main__":
    main()
