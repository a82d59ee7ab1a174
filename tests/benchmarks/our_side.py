"""Our side of the comparison: the product's own train step, driven step by step.

python our_side.py TASK FOLDER, where TASK is sft, packed or dpo; see `compare.py`.
"""

import platform
import sys
import time
from pathlib import Path

import case
import jax
import jax.numpy as jnp
import numpy as np
from commands import peak_bytes, say, steps_to_do

from aya_jax.checkpoints.hugging_face import load_params
from aya_jax.checkpoints.model_directory import load_config
from aya_jax.data.examples import Example, pack, pad
from aya_jax.models.architecture import read_config
from aya_jax.models.decoder import Batch
from aya_jax.models.heads import target_logprobs
from aya_jax.sharding.mesh import device_mesh, logical_rules
from aya_jax.training.objectives import DPO, SFT
from aya_jax.training.optimizer import AdamW
from aya_jax.training.step import train_program

SIDES = ("chosen", "rejected")


def rows(documents, *, packed=False):
    """Return arrays [R, T] of (prompt, completion) documents."""
    examples = [Example(prompt, completion) for prompt, completion in documents]
    lay = pack if packed else pad
    return lay(examples, length=case.LENGTH)._asdict()


def batches(task, pairs, config, params):
    """Return the arrays of all batches, in order, and how many rows each takes of them."""
    if task != "dpo":
        documents = [(pair["prompt"], pair["chosen"]) for pair in pairs]
        return rows(documents, packed=task == "packed"), case.SEQUENCES
    arrays = {}
    for side in SIDES:
        found = rows([(pair["prompt"], pair[side]) for pair in pairs])
        arrays |= {f"{side}_{name}": array for name, array in found.items()}
    logprobs = jax.jit(
        lambda params, batch, mask: target_logprobs(config, params, batch, mask).sum(-1)
    )
    count = case.SEQUENCES
    for side in SIDES:
        parts = []
        for start in range(0, len(pairs), count):
            part = {
                k: arrays[f"{side}_{k}"][start : start + count] for k in (*Batch._fields, "mask")
            }
            batch = Batch(*(part[name] for name in Batch._fields))
            parts.append(np.asarray(logprobs(params, batch, part["mask"])))
        arrays[f"reference_{side}"] = np.concatenate(parts)
    return arrays, case.SEQUENCES // 2


def seen(batch):
    """Return the real tokens of each row of a batch, and which of them are learnt."""
    found = []
    for side in (f"{side}_" for side in SIDES) if "chosen_tokens" in batch else ("",):
        for tokens, segments, mask in zip(
            *(batch[f"{side}{name}"] for name in ("tokens", "segment_ids", "mask")), strict=True
        ):
            real = segments > 0
            found.append((tokens[real].tolist(), mask[real].astype(int).tolist()))
    return found


def main(task, folder):
    """Train as many steps as the driver says, again and again."""
    pairs = case.pairs_of(folder, task)
    config = read_config(load_config(folder / "model"), "config.json")
    params = load_params(folder / "model", config)
    arrays, take = batches(task, pairs, config, params)
    objective = DPO(config, case.BETA) if task == "dpo" else SFT(config)
    optimizer = AdamW(b1=case.B1, b2=case.B2, clip_norm=case.CLIP_NORM)
    program = train_program(objective, optimizer, device_mesh(), logical_rules())
    state = program.init(params)
    del params
    total = len(next(iter(arrays.values()))) // take
    say(
        releases={"jax": jax.__version__, "Python": platform.python_version()},
        batches=[
            case.fingerprint(seen({k: v[n * take : (n + 1) * take] for k, v in arrays.items()}))
            for n in range(total)
        ],
        tokens=sum(len(row[0]) for row in seen(arrays)) / total,
        reference=[
            float(value)
            for side in (SIDES if task == "dpo" else ())
            for value in arrays[f"reference_{side}"][:take]
        ],
    )
    step = 0
    while count := steps_to_do():
        losses, start, work = [], time.perf_counter(), time.process_time()
        for _ in range(count):
            first = step % total * take
            batch = {name: array[first : first + take] for name, array in arrays.items()}
            batch = jax.device_put(batch, program.batch_sharding)
            state, metrics = program.step(state, batch, jnp.float32(case.LEARNING_RATE))
            losses.append(metrics["loss"])
            step += 1
        losses = [float(loss) for loss in losses]
        say(
            seconds=time.perf_counter() - start,
            cpu_seconds=time.process_time() - work,
            losses=losses,
            peak_bytes=peak_bytes(),
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
