"""What both sides of the comparison with TRL are given; read in both environments, so without either's libraries."""

import hashlib
import json
import random
from pathlib import Path

# The architecture of Aya Expanse, small enough for two cores; logits of 16,384 columns.
MODEL = {
    "model_type": "cohere",
    "vocab_size": 16384,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "logit_scale": 0.0625,
    "layer_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "use_qk_norm": False,
    "attention_bias": False,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 7,
}
LENGTH = 256  # tokens of a row, padding included
SEQUENCES = 8  # in a batch: documents of SFT, both sides of the pairs of DPO
BATCHES = 8  # different ones
LEARNING_RATE = 1e-4
BETA = 0.1
B1, B2, CLIP_NORM = 0.9, 0.95, 1.0


def make_documents(path: Path, seed: int = 0) -> None:
    """Write the documents: prompts of 16 to 64 tokens, answers of 32 to 192, in pairs of one prompt."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(8, MODEL["vocab_size"]) for _ in range(draw.randint(low, high))]

    pairs = [
        {"prompt": ids(16, 64), "chosen": ids(32, 192), "rejected": ids(32, 192)}
        for _ in range(BATCHES * SEQUENCES)
    ]
    path.write_text(json.dumps(pairs))


def pairs_of(folder: Path, task: str) -> list[dict[str, list[int]]]:
    """Return as many pairs as make all batches of a task, which takes one document of each, or both."""
    pairs = json.loads((folder / "documents.json").read_text())
    return pairs[: BATCHES * SEQUENCES // 2] if task == "dpo" else pairs


def fingerprint(rows: list[tuple[list[int], list[int]]]) -> str:
    """Return a hash of a batch as a side really trained on it: the real tokens of each row, and which are learnt."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
