"""Model FLOPs utilisation of SFT and DPO steps on the first accelerator: `make bench`, where there is one.

A decoder of about a billion parameters with the architecture of Aya Expanse, random, on full rows: every token is
real, and is learnt in SFT. Parameters and moments are float32, activations bfloat16. Model FLOPs are those of
`aya_jax.models.flops`, over the chip's dense bfloat16 peak by its data sheet.
"""

import argparse
import datetime
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from page import put

from aya_jax.models.config import DecoderConfig
from aya_jax.models.decoder import init_params
from aya_jax.sharding.mesh import device_mesh, logical_rules
from aya_jax.training.objectives import DPO, SFT
from aya_jax.training.optimizer import AdamW
from aya_jax.training.step import train_program
from aya_jax.training.telemetry import memory, peak_flops
from aya_jax.training.work import row_work

SIZES = {
    "full": {
        "vocab_size": 131072,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 15,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
WARM_UP = 3
HEAD = """\
| what | parameters | rows x tokens | remat | s a step | tokens a second | model TFLOP/s | MFU | peak memory, GiB |
|---|---|---|---|---|---|---|---|---|"""


def rows(config, count, length, prefix="", prompt=1):
    """Return full rows of random tokens, one document each."""
    rng = np.random.default_rng(len(prefix))
    mask = np.arange(length) >= prompt
    return {
        f"{prefix}tokens": rng.integers(8, config.vocab_size, (count, length)).astype(np.int32),
        f"{prefix}positions": np.tile(np.arange(length, dtype=np.int32), (count, 1)),
        f"{prefix}segment_ids": np.ones((count, length), np.int32),
        f"{prefix}mask": np.tile(mask, (count, 1)),
    }


def question(name, config, count, length, remat):
    """Return the objective and the arrays of one batch of `count` sequences."""
    settings = {"dtype": jnp.bfloat16, "remat": remat}
    if name == "SFT":
        return SFT(config, **settings), rows(config, count, length)
    arrays, pairs = {}, count // 2
    for side in ("chosen", "rejected"):
        arrays |= rows(config, pairs, length, f"{side}_", prompt=length // 4)
        arrays[f"reference_{side}"] = np.zeros(pairs, np.float32)
    return DPO(config, 0.1, **settings), arrays


def measured(name, config, args):
    """Return a row of the table, by the first policy of rematerialisation that there is memory for."""
    for remat in args.remat:
        try:
            return measured_with(name, config, args, remat)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
    return f"| {name} | | {args.sequences} x {args.length:,} | {', '.join(args.remat)} | no room | | | | |"


def measured_with(name, config, args, remat):
    """Return a row of the table."""
    objective, arrays = question(name, config, args.sequences, args.length, remat)
    program = train_program(objective, AdamW(), device_mesh(), logical_rules())
    state = program.init(init_params(config, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    batch = jax.device_put(arrays, program.batch_sharding)
    seconds = []
    for number in range(WARM_UP + args.repeats):
        start = time.perf_counter()
        state, metrics = program.step(state, batch, jnp.float32(1e-5))
        loss = float(metrics["loss"])
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    assert np.isfinite(loss), f"{name}: the loss is {loss}"
    taken = statistics.median(seconds)
    work, batch_rows = row_work(objective, arrays), len(next(iter(arrays.values())))
    speed, best = work.flops * batch_rows / taken, peak_flops()
    cells = [
        name,
        f"{count / 1e9:.2f}e9",
        f"{args.sequences} x {args.length:,}",
        remat,
        f"{taken:.3f}",
        f"{work.tokens * batch_rows / taken:,.0f}",
        f"{speed / 1e12:.3g}",
        f"{speed / best:.1%}" if best else "peak unknown",
        f"{memory().get('memory/peak', float('nan')):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main():
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="where the table goes, printed alone if absent")
    parser.add_argument(
        "--sequences", type=int, default=8, help="of a step; twice the pairs of DPO"
    )
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument(
        "--remat", nargs="*", default=["none", "products", "full"], help="policies to try, in order"
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--size", choices=list(SIZES), default="full")
    args = parser.parse_args()
    device = jax.devices()[0]
    if device.platform == "cpu" and args.size == "full":
        print("There is no accelerator: model FLOPs utilisation is not measured.")
        return
    fields = {"model_type": "cohere", "max_position_embeddings": args.length, "rope_theta": 1e4}
    config = DecoderConfig.from_hf({**SIZES[args.size], **fields})
    lines = [
        f"{jax.device_count()} x {device.device_kind}, jax {jax.__version__}, "
        f"Python {platform.python_version()}, {datetime.date.today()}; medians of {args.repeats} steps. "
        "The peak is that of the process, and so at least that of the row above.",
        "",
        HEAD,
        *(measured(name, config, args) for name in ("SFT", "DPO")),
    ]
    text = "\n".join(lines)
    print(text)
    if args.page:
        put(args.page, "mfu", text)


if __name__ == "__main__":
    main()
