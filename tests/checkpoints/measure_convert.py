"""Measures conversions: peak memory and time in fresh processes, and that the bytes come back.

python tests/checkpoints/measure_convert.py FOLDER [GIGABYTES]

The model is Llama-like, in bfloat16, sharded; its largest tensor is the embedding.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from aya_jax.checkpoints.safetensors import Safetensors, write_safetensors
from aya_jax.models.config import DecoderConfig
from aya_jax.models.names import hf_tensors

# Imports what a conversion imports and runs one; prints its own peak above what imports took.
CONVERT = """
import sys
from aya_jax.checkpoints import hugging_face
import jax, orbax.checkpoint, tensorstore

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

before = status("VmRSS")
getattr(hugging_face, sys.argv[1])(sys.argv[2], sys.argv[3])
print(status("VmHWM") - before)
"""


def config_of(gigabytes, share):
    """A share of the bytes is in the embedding, the rest in layers of 1024 x 16384."""
    d, f = 1024, 16384
    layer = 2 * (3 * d * f + 4 * d * d)
    return DecoderConfig(
        model_type="llama",
        vocab_size=int(gigabytes * share * 1e9) // (2 * d),
        hidden_size=d,
        intermediate_size=f,
        num_hidden_layers=max(1, round(gigabytes * (1 - share) * 1e9 / layer)),
        num_attention_heads=8,
        num_key_value_heads=8,
    )


def make(folder, config, tokenizer):
    """Write a Hugging Face directory of random bits; return the size of its largest tensor."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    kind = np.dtype(ml_dtypes.bfloat16)
    tensors = {t.name: (kind, t.shape) for t in hf_tensors(config)}
    with write_safetensors(folder, tensors, max_shard_size=500_000_000) as put:
        for name, (_, shape) in tensors.items():
            put(name, rng.integers(0, 1 << 16, shape, np.uint16).view(kind))
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)
    return max(2 * int(np.prod(shape)) for _, shape in tensors.values())


def convert(direction, source, out):
    """Convert in a fresh process; return its peak memory above the imports, and seconds."""
    started = time.monotonic()
    command = [sys.executable, "-c", CONVERT, direction, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout), time.monotonic() - started


def assert_same(one, other):
    """The same tensors, byte for byte."""
    with Safetensors(one) as ours, Safetensors(other) as theirs:
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, entry in ours.tensors.items():
            assert entry[1:3] == theirs.tensors[name][1:3]
            assert ours.read(name).tobytes() == theirs.read(name).tobytes(), name


def measure(place, gigabytes, share=0.2):
    """Return bytes of the model and of its largest tensor; of each direction peak and seconds."""
    place = Path(place)
    place.mkdir()
    tokenizer = place / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tokenizer / name).write_text("{}")
    try:
        figures = {"largest": make(place / "hf", config_of(gigabytes, share), tokenizer)}
        shards = (place / "hf").glob("*.safetensors")
        figures["size"] = sum(file.stat().st_size for file in shards)
        for direction, source, out in (("hf_to_aya", "hf", "aya"), ("aya_to_hf", "aya", "back")):
            figures[direction] = convert(direction, place / source, place / out)
        assert_same(place / "hf", place / "back")
    finally:
        shutil.rmtree(place)
    return figures


def main(place, gigabytes):
    """Print the figures."""
    figures = measure(place, gigabytes)
    size, largest = figures["size"], figures["largest"]
    print(f"model {size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB")
    for direction in ("hf_to_aya", "aya_to_hf"):
        peak, seconds = figures[direction]
        print(f"{direction}: peak {peak / 1e6:.0f} MB above the imports, {seconds:.0f} s")
    print("the round trip gives the same bytes")


if __name__ == "__main__":
    main(sys.argv[1], float((*sys.argv[2:], "4")[0]))
