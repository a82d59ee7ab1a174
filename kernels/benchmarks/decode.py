"""Decode attention: how much of the memory's bandwidth it reads a cache at."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import aya_kernels
from aya_kernels.decode_attention.api import BACKENDS
from benchmarks.operands import normal, ours
from benchmarks.table import Question, Work
from benchmarks.timing import Program, compiled

BASELINES = ["plain XLA"]


class Sizes(NamedTuple):
    """A cache as Aya Expanse 8B has it."""

    rows: int = 64
    slots: int = 8192
    heads: int = 32
    kv_heads: int = 8
    size: int = 128
    page: int = 64
    dtype: Any = jnp.bfloat16


FULL = Sizes()
TINY = Sizes(2, 64, 4, 2, 32, 8, jnp.float32)
CPU = Sizes(8, 2048, 8, 2, 64, 64, jnp.float32)


def questions(sizes: Sizes) -> Iterator[Question]:
    """Return what is asked: full and ragged rows, contiguous and paged."""
    full = np.full(sizes.rows, sizes.slots)
    ragged = np.random.default_rng(0).integers(1, sizes.slots + 1, sizes.rows)
    for name, lengths in (("full", full), ("ragged", ragged)):
        for paged in (False, True):
            yield question(sizes, name, lengths, paged)


def question(sizes: Sizes, name: str, lengths: np.ndarray, paged: bool) -> Question:
    """Return what is asked of one kind of cache."""
    q = normal(0, sizes.rows, sizes.heads, sizes.size, dtype=sizes.dtype)
    shape = (sizes.rows, sizes.slots, sizes.kv_heads, sizes.size)
    caches = [normal(seed, *shape, dtype=sizes.dtype) for seed in (1, 2)]
    slot_bytes = 2 * sizes.kv_heads * sizes.size * caches[0].dtype.itemsize
    filled = jnp.asarray(lengths, jnp.int32)
    tables = {}
    if paged:
        pages = sizes.rows * sizes.slots // sizes.page
        order = np.random.default_rng(1).permutation(pages)
        tables["page_table"] = jnp.asarray(order.reshape(sizes.rows, -1), jnp.int32)
        caches = [x.reshape(pages, sizes.page, *shape[2:]) for x in caches]

    def our(backend: str) -> Program:
        call = partial(aya_kernels.decode_attention, backend=backend)
        return compiled(call, q, *caches, filled, **tables)

    def plain() -> Program:
        def call(q: Any, k: Any, v: Any, lengths: Any, page_table: Any = None) -> Any:
            if page_table is not None:
                k, v = (x[page_table].reshape(shape) for x in (k, v))
            return jax.nn.dot_product_attention(
                q[:, None], k, v, key_value_seq_lengths=lengths, implementation="xla"
            )

        return compiled(call, q, *caches, filled, **tables)

    makers: dict[str, Callable[[], Program]] = {
        backend: partial(our, backend) for backend in ours(BACKENDS)
    }
    makers["plain XLA"] = plain
    place = f"pages of {sizes.page}" if paged else "contiguous"
    return Question(
        f"decode {sizes.rows} x {sizes.slots}, {name}, {place}",
        Work(bytes=float(lengths.sum()) * slot_bytes),
        makers,
    )
