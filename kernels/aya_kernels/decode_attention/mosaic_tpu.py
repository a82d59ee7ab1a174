"""decode_attention as a Pallas kernel for TPUs; on a CPU it runs interpreted.

Decoding reads the cache once and computes little with it, so everything here serves the reading. Both
caches stay in HBM, and a step copies the pages of its slots that hold something into VMEM while the
step before it is computed, across rows too. A contiguous cache is read as pages of a row that lie in
order. The list of steps is made outside and is as long as rows have filled (and the window shows).

All heads of a slot lie together in HBM, interleaved in tiles, so they are copied and multiplied
together: every query meets the keys of every head, [T * N, slots * K], and the mask leaves it its own.
The matrix unit streams the keys once whoever they are for, and the unit has rows to spare, so the
products cost as if each head had its own; what the vector unit does more is far below the copying:
for 32 heads that share 8 key heads of 128 a slot is 4 KiB of bfloat16, which takes a v5e 7 cycles to
copy, and its scores are a quarter of a register.

The rows are split along their slots (Flash-Decoding) into as many parts as the chip has cores, whose
results are combined: both cores of a v5p have the same to do, however ragged the rows.

Shapes: B rows, T queries, N query heads, K key heads, H head size, R = T * N; C = slots of a step * K.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from aya_kernels.attention.combine import combine_all
from aya_kernels.attention.inputs import MASKED
from aya_kernels.backends import Target, current_target, interpreted
from aya_kernels.decode_attention.inputs import Inputs, Options, Seen

# What jax calls the chips of two cores that run one program (v4, v5p).
TWO_CORES = ("TPU v4", "TPU v5", "TPU v5p")
# Bytes of keys, and as many of values, that a step copies: 2 MiB on their way hide a latency of a
# microsecond at the 0.8 (v5e) to 2.8 (v5p) TB/s of these chips, and take longer than starting a step.
STEP_BYTES = 1 << 20
# Of a step's float32 scores; several tiles of this size are alive at once.
SCORE_BYTES = 1 << 20
# The smallest VMEM of a v5e, v5p, v6e or v7x is 64 MiB. The four buffers of a step take 4 MiB, its
# scores and what is made of them a few more, a product of float32 operands in full as many again.
VMEM_BYTES = 32 << 20
# Slots of a page of a contiguous cache: what is copied beyond a row's length is below this.
PAGE = 128
# The list of steps and the page table lie in SMEM, which has 1 MiB; in words.
LIST_WORDS = 200_000
# Further than any slot: where the keys of other heads are for a query.
FAR = 1 << 30


class Tiling(NamedTuple):
    """How the work is cut; static."""

    size: int  # slots a page
    pages: int  # a step
    parts: int  # into which each row is split
    length: int  # of a part's list of steps at most
    row_pages: int  # of a row, the last of which may be shorter
    tail: int  # slots of that last page

    @classmethod
    def of(cls, x: Inputs) -> "Tiling":
        b, t, n, h = x.q.shape
        kv_heads = x.k_cache.shape[2]
        page, slots = (
            PAGE,
            min(
                STEP_BYTES // (kv_heads * h * x.k_cache.dtype.itemsize),
                SCORE_BYTES // (4 * t * n * kv_heads),
            ),
        )
        parts = 2 if current_target().kind in TWO_CORES else 1
        if interpreted():
            # To check the kernel: so little that short rows have several of everything.
            page, slots, parts = 4, 8, 2
        size = min(page, x.slots) if x.page_table is None else x.k_cache.shape[1]
        row_pages = pl.cdiv(x.slots, size)
        pages = min(max(slots // size, 1), row_pages)
        length = b * pl.cdiv(pl.cdiv(row_pages, pages), parts)
        return cls(size, pages, parts, length, row_pages, x.slots - (row_pages - 1) * size)

    @property
    def slots(self) -> int:
        """Slots a step."""
        return self.pages * self.size


def refuses(target: Target, o: Options, x: Inputs) -> str | None:
    """Return why the kernel cannot compute this there, or None."""
    dtype = x.q.dtype
    if not dtype == x.k_cache.dtype == x.v_cache.dtype or dtype not in (jnp.bfloat16, jnp.float32):
        return (
            f"q and the caches must all be bfloat16 or float32, not {dtype}, {x.k_cache.dtype} and "
            f"{x.v_cache.dtype}"
        )
    kv_heads, h = x.k_cache.shape[2:]
    if target.platform == "tpu":
        # The compiler keeps the heads of a slot in tiles of at most 8 x 128 numbers.
        dense = kv_heads % 8 == 0 or kv_heads == 1 or (kv_heads in (2, 4) and h == 128)
        if h % 128 or not dense:
            return (
                f"{kv_heads} key heads of {h} do not fill tiles, so that the caches would be copied"
            )
        if x.k_cache.shape[1] * kv_heads % 8:
            return f"{x.k_cache.shape[1]} slots of {kv_heads} key heads do not fill tiles of 8"
    t = Tiling.of(x)
    words = 2 * t.parts * t.length + (0 if x.page_table is None else x.page_table.size)
    if words > LIST_WORDS:
        return f"the list of steps and the page table have {words} words, SMEM has {LIST_WORDS} for them"
    return None


class Steps(NamedTuple):
    """The steps of all parts, and what they need to know of their rows: int32, in SMEM."""

    rows: jax.Array  # [parts * length], of each step the row
    steps: jax.Array  # [parts * length], and which step of the row it is
    counts: jax.Array  # [parts], steps in the list of a part
    low: jax.Array  # [B], see Seen
    high: jax.Array  # [B]
    first: jax.Array  # [B], the first slot that any query sees
    table: jax.Array  # [B * pages of a row], or [1] where the cache is contiguous


def _steps(x: Inputs, t: Tiling) -> tuple[Steps, jax.Array]:
    """Return the steps, and bool [parts, B], whether a part has any of a row."""
    seen = Seen.of(x)
    first = seen.first(x.q.shape[1])
    begin, end = jax.lax.div(first, t.slots), jax.lax.div(seen.high + (t.slots - 1), t.slots)
    held = jnp.maximum(end - begin, 0)
    rows = jnp.arange(len(first), dtype=jnp.int32)
    # Which part has the odd step of a row changes from row to row.
    bounds = jnp.arange(t.parts + 1, dtype=jnp.int32)[:, None] * held + jax.lax.rem(rows, t.parts)
    bounds = jax.lax.div(bounds, t.parts)
    counts = bounds[1:] - bounds[:-1]
    ends = jnp.cumsum(counts, axis=1, dtype=jnp.int32)
    places = jnp.arange(t.length, dtype=jnp.int32)
    of_row = (places[:, None] >= ends[:, None]).sum(-1, dtype=jnp.int32)
    of_row = jnp.minimum(of_row, len(first) - 1)
    start = jnp.take_along_axis(begin + bounds[:-1] - (ends - counts), of_row, axis=1)
    table = jnp.zeros(1, jnp.int32) if x.page_table is None else x.page_table.reshape(-1)
    lists = of_row.reshape(-1), (start + places).reshape(-1)
    return Steps(*lists, ends[:, -1], *seen, first, table), counts > 0


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Return the float32 product of two blocks over the given axis of each."""
    # On a TPU float32 operands would be rounded to bfloat16 by default.
    precision = "highest" if a.dtype == jnp.float32 else "default"
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _places(queries: int, heads: int, kv_heads: int, t: Tiling) -> np.ndarray:
    """Return int32 [R, C]: where a key lies in its step, seen from the last query of its head.

    A query `behind` the last one sees `behind` slots less: for it a key lies so much further.
    """
    row, column = np.arange(queries * heads)[:, None], np.arange(t.slots * kv_heads)
    behind = queries - 1 - row // heads
    own = row % heads // (heads // kv_heads) == column % kv_heads
    return np.where(own, column // kv_heads + behind, FAR).astype(np.int32)


def _copies(  # type: ignore[no-untyped-def]
    t: Tiling, kv_heads: int, paged: bool, s: Steps, at, caches, buffers, sems, act
) -> None:
    """Start, or wait for, the copies of the pages of step `at` that hold what some query sees."""
    b, step = s.rows[at], s.steps[at]
    begin = step * t.pages
    low = jnp.maximum(begin, jax.lax.div(s.first[b], t.size))
    high = jnp.minimum(begin + t.pages, jax.lax.div(s.high[b] + (t.size - 1), t.size))
    rows = t.size * kv_heads

    def copy(page, length: int) -> None:  # type: ignore[no-untyped-def]
        for cache, buffer in zip(caches, buffers, strict=True):
            if paged:
                source = cache.at[s.table[b * t.row_pages + page]]
            else:
                source = cache.at[b, pl.ds(page * rows, length)]
            place = pl.ds((page - begin) * rows, length)
            act(pltpu.make_async_copy(source, buffer.at[place], sems))

    def body(page, _):  # type: ignore[no-untyped-def]
        copy(page, rows)
        return 0

    if t.tail == t.size:
        jax.lax.fori_loop(low, high, body, 0)
    else:
        last = t.row_pages - 1
        jax.lax.fori_loop(low, jnp.minimum(high, last), body, 0)
        pl.when((low <= last) & (last < high))(lambda: copy(last, t.tail * kv_heads))


def _kernel(  # type: ignore[no-untyped-def]
    o: Options,
    t: Tiling,
    kv_heads: int,
    paged: bool,
    windowed: bool,
    *refs,
):
    s = Steps(*refs[: len(Steps._fields)])
    q, places, k_cache, v_cache, out, lse, k_buffer, v_buffer, sems, acc, top, total = refs[
        len(s) :
    ]
    part, i = pl.program_id(0), pl.program_id(1)
    count, at = s.counts[part], part * t.length + i

    def copies(ahead: int, act) -> None:  # type: ignore[no-untyped-def]
        turn = jax.lax.rem(i + ahead, 2)
        buffers = k_buffer.at[turn], v_buffer.at[turn]
        caches = k_cache, v_cache
        _copies(t, kv_heads, paged, s, at + ahead, caches, buffers, sems.at[turn], act)

    pl.when((i == 0) & (count > 0))(lambda: copies(0, lambda copy: copy.start()))
    pl.when(i + 1 < count)(lambda: copies(1, lambda copy: copy.start()))

    @pl.when(i < count)
    def _():
        copies(0, lambda copy: copy.wait())
        b, turn = s.rows[at], jax.lax.rem(i, 2)
        start = s.steps[at] * t.slots
        low, high, first = s.low[b] - start, s.high[b] - start, s.first[b] - start

        @pl.when((i == 0) | (s.rows[jnp.maximum(at - 1, 0)] != b))
        def _():
            acc[...] = jnp.zeros_like(acc)
            # Above MASKED, so that exp(MASKED - top) is 0 also for a query that has seen nothing.
            top[...] = jnp.full_like(top, MASKED / 2)
            total[...] = jnp.zeros_like(total)

        # What is not seen may be anything, and nothing times anything is not always nothing.
        @pl.when((first > 0) | (high < t.slots))
        def _():
            values = v_buffer[turn]
            row = jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
            held = (row >= first * kv_heads) & (row < high * kv_heads)
            values = jnp.where(held, values.astype(jnp.float32), 0.0)
            v_buffer[turn] = values.astype(v_buffer.dtype)

        scores = _dot(q[...], k_buffer[turn], (1, 1)) * o.scale
        if o.softcap is not None:
            scores = o.softcap * jnp.tanh(scores * (1 / o.softcap))
        place = places[...]
        mask = place < high
        if windowed:
            mask &= place >= low
        scores = jnp.where(mask, scores, MASKED)
        old_top = top[...]
        new_top = jnp.maximum(old_top, scores.max(1, keepdims=True))
        weights = jnp.exp(scores - new_top)
        shrink = jnp.exp(old_top - new_top)
        values = v_buffer[turn]
        acc[...] = acc[...] * shrink + _dot(weights.astype(values.dtype), values, (1, 0))
        total[...] = total[...] * shrink + weights.sum(1, keepdims=True)
        top[...] = new_top

        @pl.when((i == count - 1) | (s.rows[jnp.minimum(at + 1, t.parts * t.length - 1)] != b))
        def _():
            sums = total[...]
            seen = sums > 0
            sums = jnp.where(seen, sums, 1.0)
            out[...] = (acc[...] / sums).astype(out.dtype)
            lse[...] = jnp.where(seen, top[...] + jnp.log(sums), MASKED)


def mosaic_tpu_decode_attention(o: Options, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """As `reference_decode_attention`, with float32 scores and products in the dtype of the cache."""
    b, queries, n, h = x.q.shape
    kv_heads = x.k_cache.shape[2]
    t = Tiling.of(x)
    rows, columns = queries * n, t.slots * kv_heads
    steps, held = _steps(x, t)
    caches = [a.reshape(a.shape[0], -1, h) for a in (x.k_cache, x.v_cache)]

    def row(part, i, rows, *_):  # type: ignore[no-untyped-def]
        return rows[part * t.length + i], 0, 0

    def row_of_part(part, i, rows, *_):  # type: ignore[no-untyped-def]
        return part, rows[part * t.length + i], 0, 0

    def same(part, i, *_):  # type: ignore[no-untyped-def]
        return 0, 0

    kernel = partial(_kernel, o, t, kv_heads, x.page_table is not None, x.window is not None)
    buffer = pltpu.VMEM((2, columns, h), x.k_cache.dtype)
    outs, lses = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(steps),
            # At least one step, as a kernel with an empty grid is nothing that compilers are tested on.
            grid=(t.parts, jnp.maximum(steps.counts.max(), 1)),
            in_specs=[
                pl.BlockSpec((None, rows, h), row),
                pl.BlockSpec((rows, columns), same),
                pl.BlockSpec(memory_space=pl.ANY),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=[
                pl.BlockSpec((None, None, rows, h), row_of_part),
                pl.BlockSpec((None, None, rows, 1), row_of_part),
            ],
            scratch_shapes=[
                buffer,
                buffer,
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.VMEM((rows, h), jnp.float32),
                pltpu.VMEM((rows, 1), jnp.float32),
                pltpu.VMEM((rows, 1), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((t.parts, b, rows, h), jnp.float32),
            jax.ShapeDtypeStruct((t.parts, b, rows, 1), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            # The list is walked in order; the parts are one another's equals.
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES,
        ),
        interpret=interpreted(),
    )(*steps, x.q.reshape(b, rows, h), _places(queries, n, kv_heads, t), *caches)
    # What no step has written is nothing.
    held = held[..., None]
    outs, lses = jnp.where(held[..., None], outs, 0.0), jnp.where(held, lses[..., 0], MASKED)
    out, lse = combine_all(outs, lses, 0)
    return out.reshape(x.q.shape).astype(x.q.dtype), lse.reshape(b, queries, n).swapaxes(1, 2)
