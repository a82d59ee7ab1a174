"""Compile the kernels for TPUs that are not here, at the shapes of real models, and read their memory.

`python -m benchmarks.compiled` (from `kernels/`, with the extra `[tpu]`) prints the table of
`docs/benchmarks.md`. HBM is what the compiler's `memory_analysis` says. VMEM is what the compiler
gave each kernel in the end, which stands in its `tpu_custom_call`.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# No questions to a metadata server; and several processes may compile at once.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import argparse
import math
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import aya_kernels

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# HBM and VMEM of a chip (of a core of it, for VMEM).
HBM_BYTES = {"v5e": 16 << 30, "v5p": 95 << 30, "v6e": 32 << 30}
VMEM_BYTES = {"v5e": 128 << 20, "v5p": 64 << 20, "v6e": 128 << 20}
MIB = 1 << 20
# How the compiler writes down a region of VMEM, which is memory space 1.
MEMORY = r'"{}":\[{{"memory_space":"1","offset":"(\d+)","size":"(\d+)"'

Array = tuple[tuple[int, ...], Any]  # a shape and a dtype


class Case(NamedTuple):
    """A program of one operation: arrays by name, those to differentiate by, and how it is called.

    `most` is how many bytes of temporaries in HBM it may have on a chip: far less than the scores, a
    copy of a cache or the logits. `split` names the axis of each array that is split over the chips of the topology, where it is a
    program of several.
    """

    call: Callable[..., Any]
    arrays: dict[str, Array]
    most: int
    by: tuple[str, ...] = ()
    options: dict[str, Any] | None = None
    split: dict[str, int] | None = None
    axis: str = "sequence"


class Cost(NamedTuple):
    """What a compiled program holds, in bytes, and the elements of its largest array."""

    arguments: int
    outputs: int
    temporaries: int
    vmem: list[int]  # of each kernel
    largest: int

    @property
    def hbm(self) -> int:
        return self.arguments + self.outputs + self.temporaries


def attention_case(
    heads: tuple[int, int] = (32, 8),
    size: int = 128,
    tokens: int = 8192,
    keys: int | None = None,
    dtype: Any = jnp.bfloat16,
    packed: bool = False,
    window: bool = False,
    offsets: bool = False,
    **options: Any,
) -> Case:
    """Return attention, forward and backward, by its result and its log-sum-exp."""
    n, k = heads
    keys = keys or tokens
    arrays: dict[str, Array] = {
        "q": ((1, tokens, n, size), dtype),
        "k": ((1, keys, k, size), dtype),
        "v": ((1, keys, k, size), dtype),
    }
    if packed:
        arrays |= {"q_ids": ((1, tokens), jnp.int32), "kv_ids": ((1, keys), jnp.int32)}
    numbers = ["window"] * window + ["q_offset", "kv_offset"] * offsets
    arrays |= {name: ((), jnp.int32) for name in numbers}

    def call(
        q: Any, k: Any, v: Any, q_ids: Any = None, kv_ids: Any = None, **rest: Any
    ) -> tuple[Any, Any]:
        ids = None if q_ids is None else (q_ids, kv_ids)
        return aya_kernels.attention(q, k, v, segment_ids=ids, return_lse=True, **rest)

    # A few arrays as large as q, or k, which are as long as the sequence and not as its square.
    most = 8 * max(tokens, keys) * n * size * jnp.dtype(dtype).itemsize
    return Case(call, arrays, most, ("q", "k", "v"), options)


def decode_case(
    queries: int | None = None,
    page: int | None = None,
    window: bool = False,
    dtype: Any = jnp.bfloat16,
    **options: Any,
) -> Case:
    """Return decode attention of 64 rows of 8,192 slots."""
    rows, slots, n, k, h = 64, 8192, 32, 8, 128
    cache = (rows, slots, k, h) if page is None else (rows * slots // page, page, k, h)
    arrays: dict[str, Array] = {
        "q": ((rows, n, h) if queries is None else (rows, queries, n, h), dtype),
        "k_cache": (cache, dtype),
        "v_cache": (cache, dtype),
        "lengths": ((rows,), jnp.int32),
    }
    if page is not None:
        arrays["page_table"] = ((rows, slots // page), jnp.int32)
    if window:
        arrays["window"] = ((), jnp.int32)
    most = math.prod(cache) * jnp.dtype(dtype).itemsize // 10
    return Case(partial(aya_kernels.decode_attention, return_lse=True), arrays, most, (), options)


def logprob_case(
    hidden: int = 4096,
    tokens: int = 8192,
    vocabulary: int = 256_000,
    dtype: Any = jnp.bfloat16,
    rows: tuple[int, ...] = (),
    mask: bool = False,
    forward: bool = False,
    **options: Any,
) -> Case:
    """Return linear_statistics, forward alone or with its gradients."""
    arrays: dict[str, Array] = {
        "hidden": ((*rows, tokens, hidden), dtype),
        "weight": ((vocabulary, hidden), dtype),
        "targets": ((*rows, tokens), jnp.int32),
        "scale": ((), jnp.float32),
    }
    if mask:
        arrays["mask"] = ((*rows, tokens), jnp.bool_)

    def call(**arrays: Any) -> Any:
        found = aya_kernels.linear_statistics(**arrays)
        return found if forward else (found.logp, found.lse, found.entropy)

    by = () if forward else ("hidden", "weight", "scale")
    return Case(call, arrays, tokens * vocabulary * 4 // 10, by, options)


# Every kernel and every option at least once; not their product.
CASES = {
    "attention 8B, causal": attention_case(),
    "attention 8B, packed, window, softcap": attention_case(packed=True, window=True, softcap=50.0),
    "attention 32B, packed, offsets": attention_case((64, 8), packed=True, offsets=True, scale=0.1),
    "attention both ways, window, odd lengths": attention_case(
        (16, 16), 64, tokens=1000, keys=3001, window=True, causal=False
    ),
    "attention float32, heads of 256": attention_case(
        (8, 1), 256, tokens=2048, dtype=jnp.float32, packed=True
    ),
    "ring attention 8B, 32,768 tokens on 4 chips": attention_case(
        tokens=32_768, packed=True, window=True
    )._replace(split={"q": 1, "k": 1, "v": 1, "q_ids": 1, "kv_ids": 1}),
    "decode 8B, 64 rows of 8,192": decode_case(),
    "decode 8B, paged, 4 newest, window, softcap": decode_case(4, 16, True, softcap=30.0),
    "decode float32, paged": decode_case(page=64, dtype=jnp.float32, scale=0.1),
    "logprob 8B, forward, entropy, argmax": logprob_case(forward=True, entropy=True, argmax=True),
    "logprob 8B": logprob_case(),
    "logprob 8B, mask, softcap, entropy": logprob_case(mask=True, softcap=30.0, entropy=True),
    "logprob 32B": logprob_case(8192),
    "logprob float32": logprob_case(1024, tokens=8191, vocabulary=256_001, dtype=jnp.float32),
    "logprob 32B, vocabulary on 4 chips": logprob_case(8192, rows=(1,), mask=True)._replace(
        split={"weight": 0}, axis="vocabulary"
    ),
}


@cache
def devices(chip: str) -> tuple[Any, ...]:
    """Return the devices of a described topology of four chips."""
    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip]).devices)


def program(case: Case, mesh: Mesh) -> tuple[Callable[..., Any], dict[str, jax.ShapeDtypeStruct]]:
    """Return the function of a case and the shapes of what it takes by name."""
    options = {"backend": "mosaic_tpu", **(case.options or {})}
    shapes = {}
    for name, (shape, dtype) in case.arrays.items():
        parts: list[str | None] = [None] * len(shape)
        if case.split is not None and name in case.split:
            parts[case.split[name]] = "chips"
        sharding = NamedSharding(mesh, PartitionSpec(*parts))
        shapes[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    if case.split is not None:
        options["placement"] = aya_kernels.Placement(mesh, **{case.axis: ("chips",)})

    def run(**arrays: Any) -> Any:
        if not case.by:
            return case.call(**arrays, **options)

        def by(*values: Any) -> Any:
            return case.call(**(arrays | dict(zip(case.by, values, strict=True))), **options)

        found, pull = jax.vjp(by, *(arrays[name] for name in case.by))
        return found, pull(found)

    return run, shapes


def compile_case(case: Case, chip: str) -> Cost:
    """Compile a case for a chip and return what one chip holds.

    Raises:
      RuntimeError: libtpu is not installed.
    """
    chips = devices(chip)
    mesh = Mesh(np.array(chips if case.split is not None else chips[:1]), ("chips",))
    run, shapes = program(case, mesh)
    with aya_kernels.target("tpu", chips[0].device_kind):
        compiled: Any = jax.jit(run).lower(**shapes).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    kernels = [line for line in text.splitlines() if 'call_target="tpu_custom_call"' in line]
    return Cost(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
        [vmem_bytes(line) for line in kernels],
        largest_array(text),
    )


def vmem_bytes(line: str) -> int:
    """Return what the kernel in a line of a program's text takes of VMEM.

    Its region starts at an offset, below which the compiler keeps arrays of the program; what is used
    is told from 0 on.

    Raises:
      RuntimeError: the line does not say.
    """
    regions = []
    for kind in ("scoped_memory_configs", "used_scoped_memory_configs"):
        found = re.search(MEMORY.format(kind), line)
        if found is None:
            raise RuntimeError(f"this compiler does not write down {kind} of a kernel")
        regions.append(tuple(map(int, found.groups())))
    (start, _), (first, size) = regions
    return first + size - start


def largest_array(text: str) -> int:
    """Return the elements of the largest array in the text of a program."""
    shapes = re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]*)\]", text)
    return max(math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes)


def largest_argument(case: Case) -> int:
    """Return the elements of the largest argument of a case, its last axis filled up to 128 lanes."""
    shapes = [
        (*shape[:-1], -(-shape[-1] // 128) * 128) for shape, _ in case.arrays.values() if shape
    ]
    return max(map(math.prod, shapes))


def row(name: str, chip: str, cost: Cost) -> str:
    """Return a row of the table."""
    numbers = [cost.arguments, cost.outputs, cost.temporaries, max(cost.vmem)]
    cells = [name, chip, *(f"{number / MIB:,.1f}" for number in numbers), str(len(cost.vmem))]
    return f"| {' | '.join(cells)} |"


HEAD = """\
| program | chip | arguments, MiB | results, MiB | temporaries, MiB | VMEM of the largest kernel, MiB | kernels |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("chips", nargs="*", default=list(CHIPS), help=f"of {', '.join(CHIPS)}")
    parser.add_argument("--only", default="", help="programs whose name has this in it")
    args = parser.parse_args()
    print(HEAD, flush=True)
    for name, case in CASES.items():
        if args.only in name:
            for chip in args.chips:
                print(row(name, chip, compile_case(case, chip)), flush=True)


if __name__ == "__main__":
    main()
