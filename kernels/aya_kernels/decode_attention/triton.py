"""decode_attention as a Pallas kernel for CUDA cards through Triton; on a CPU it runs interpreted.

A program computes one key head of one row over a chunk of slots (Flash-Decoding), and the chunks are
combined outside. A chunk in which a row has nothing filled, or the window shows nothing, ends at once,
so that the card is as busy with ragged rows as with equal ones. All queries of the head are the rows of
one product. Slots are gathered one by one, each a line of H numbers, so that pages may have any size.

Shapes: B rows, T queries, N query heads, K key heads, H head size, R = T * N / K rows of a product.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from aya_kernels.attention.combine import combine_all
from aya_kernels.attention.inputs import MASKED
from aya_kernels.backends import Target, interpreted
from aya_kernels.decode_attention.inputs import Inputs, Options, Seen

# Bytes of keys, and as many of values, that a program has on their way twice: 64 KiB of shared memory,
# which all cards of compute capability 8.0 have. An H200 needs some 3 MB on their way (4.8 TB/s times a
# latency below a microsecond), which is 23 KiB for each of its 132 processors.
BLOCK_BYTES = 16 << 10
# Slots of a chunk. Its results, R lines of float32 that are written and read again, are 8 R bytes for
# every 2,048 of 16-bit keys and values at the longest, 1.6 % where R = 4. Chunks are shorter where there
# would be too few programs to fill a card several times over.
CHUNKS = (128, 512)
PROGRAMS = 1024
# The output of a program lies in registers: four warps have 64 numbers a lane for it.
MOST_OUTPUT = 1 << 13
# Products of float32 go without tensor cores, which takes so many registers that four warps would spill.
WARPS = {jnp.dtype(jnp.bfloat16): 4, jnp.dtype(jnp.float32): 8}


class Tiling(NamedTuple):
    """How the work is cut; static. Triton wants powers of two."""

    rows: int  # R, rounded up
    columns: int  # H, rounded up
    block: int  # slots a step
    chunk: int  # slots a program, whole blocks
    chunks: int

    @classmethod
    def of(cls, x: Inputs) -> "Tiling":
        b, t, n, h = x.q.shape
        kv_heads = x.k_cache.shape[2]
        # The tensor cores take 16 rows at least.
        rows = max(pl.next_power_of_2(t * n // kv_heads), 16)
        columns = max(pl.next_power_of_2(h), 16)
        block = min(max(BLOCK_BYTES // (columns * x.k_cache.dtype.itemsize), 16), CHUNKS[0])
        chunk = pl.next_power_of_2(pl.cdiv(x.slots * b * kv_heads, PROGRAMS))
        chunk = min(max(chunk, CHUNKS[0]), CHUNKS[1])
        if interpreted():
            # To check the kernel: so little that short rows have several of everything.
            block, chunk = 4, 8
        return cls(rows, columns, block, chunk, pl.cdiv(x.slots, chunk))


def refuses(target: Target, o: Options, x: Inputs) -> str | None:
    """Return why the kernel cannot compute this there, or None."""
    dtype = x.q.dtype
    if not dtype == x.k_cache.dtype == x.v_cache.dtype or dtype not in (jnp.bfloat16, jnp.float32):
        return (
            f"q and the caches must all be bfloat16 or float32, not {dtype}, {x.k_cache.dtype} and "
            f"{x.v_cache.dtype}"
        )
    if target.capability is not None and target.capability < 8.0:
        return f"it needs compute capability 8.0 and this is {target.capability}"
    t = Tiling.of(x)
    if t.rows * t.columns > MOST_OUTPUT:
        return f"{t.rows} queries of {t.columns} for a key head do not fit into registers"
    return None


def _kernel(o: Options, t: Tiling, queries: int, windowed: bool, paged: bool, *refs) -> None:  # type: ignore[no-untyped-def]
    seen_ref, table_ref, q_ref, k_ref, v_ref, out_ref, lse_ref = refs
    b, head, part = (pl.program_id(axis) for axis in range(3))
    rows, h = q_ref.shape[2:]
    low, high, first = (seen_ref[i, b] for i in range(3))
    begin = jnp.maximum(first, part * t.chunk)
    end = jnp.minimum(high, (part + 1) * t.chunk)
    row, column = jnp.arange(t.rows), jnp.arange(t.columns)
    inside = (row < rows)[:, None] & (column < h)[None]
    # A query `behind` the last one sees `behind` slots less.
    behind = (queries - 1 - jax.lax.div(row, rows // queries))[:, None]
    q = plgpu.load(q_ref.at[b, head, row[:, None], column[None]], mask=inside, other=0.0)

    def fetch(ref, slots, held):  # type: ignore[no-untyped-def]
        """Return the keys or values of some slots, [block, columns]; zeros where not held."""
        # What is not held is not read, but interpreted it is, and dropped: it has to lie in the cache.
        slots = jnp.where(held, slots, 0)
        page = b
        if paged:
            size = ref.shape[1]
            page = plgpu.load(table_ref.at[b, jax.lax.div(slots, size)], mask=held, other=0)
            page, slots = page[:, None], jax.lax.rem(slots, size)
        place = ref.at[page, slots[:, None], head, column[None]]
        return plgpu.load(place, mask=held[:, None] & (column < h)[None], other=0.0)

    def dot(a, b):  # type: ignore[no-untyped-def]
        precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
        return jax.lax.dot(a, b, precision=precision, preferred_element_type=jnp.float32)

    def step(j, carry):  # type: ignore[no-untyped-def]
        acc, top, total = carry
        slots = j * t.block + jnp.arange(t.block)
        held = (slots >= begin) & (slots < end)
        scores = dot(q, fetch(k_ref, slots, held).T) * o.scale
        if o.softcap is not None:
            scores = o.softcap * jnp.tanh(scores * (1 / o.softcap))
        place = slots[None] + behind
        mask = held[None] & (place < high)
        if windowed:
            mask &= place >= low
        scores = jnp.where(mask, scores, MASKED)
        new_top = jnp.maximum(top, scores.max(1))
        weights = jnp.exp(scores - new_top[:, None])
        shrink = jnp.exp(top - new_top)
        values = fetch(v_ref, slots, held)
        acc = acc * shrink[:, None] + dot(weights.astype(values.dtype), values)
        return acc, new_top, total * shrink + weights.sum(1)

    carry = (
        jnp.zeros((t.rows, t.columns), jnp.float32),
        # Above MASKED, so that exp(MASKED - top) is 0 also for a query that has seen nothing.
        jnp.full(t.rows, MASKED / 2, jnp.float32),
        jnp.zeros(t.rows, jnp.float32),
    )
    steps = jax.lax.div(begin, t.block), jax.lax.div(end + (t.block - 1), t.block)
    acc, top, total = jax.lax.fori_loop(*steps, step, carry)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    lse = jnp.where(some, top + jnp.log(total), MASKED)
    plgpu.store(lse_ref.at[part, b, head, row], lse, mask=row < rows)

    @pl.when(begin < end)
    def _():
        place = out_ref.at[part, b, head, row[:, None], column[None]]
        plgpu.store(place, acc / total[:, None], mask=inside)


def triton_decode_attention(o: Options, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """As `reference_decode_attention`, with float32 scores and products in the dtype of the cache."""
    b, queries, n, h = x.q.shape
    kv_heads = x.k_cache.shape[2]
    t = Tiling.of(x)
    seen = Seen.of(x)
    paged = x.page_table is not None
    # The queries of a group and their tokens are the rows of one product.
    q = x.q.reshape(b, queries, kv_heads, -1, h).swapaxes(1, 2).reshape(b, kv_heads, -1, h)
    rows = q.shape[2]
    outs, lses = pl.pallas_call(
        partial(_kernel, o, t, queries, x.window is not None, paged),
        grid=(b, kv_heads, t.chunks),
        out_shape=[
            jax.ShapeDtypeStruct((t.chunks, b, kv_heads, rows, h), jnp.float32),
            jax.ShapeDtypeStruct((t.chunks, b, kv_heads, rows), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS[x.q.dtype], num_stages=2),
        interpret=interpreted(),
    )(
        jnp.stack([*seen, seen.first(queries)]),
        x.page_table if paged else jnp.zeros((1, 1), jnp.int32),
        q,
        x.k_cache,
        x.v_cache,
    )
    # A chunk with nothing in it has no output written.
    outs = jnp.where((lses > MASKED)[..., None], outs, 0.0)
    out, lse = combine_all(outs, lses, 0)
    out = out.reshape(b, kv_heads, queries, -1, h).swapaxes(1, 2).reshape(x.q.shape)
    lse = lse.reshape(b, kv_heads, queries, -1).swapaxes(2, 3).reshape(b, n, queries)
    return out.astype(x.q.dtype), lse
