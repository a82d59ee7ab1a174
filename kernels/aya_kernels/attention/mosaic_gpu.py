"""Flash attention for Hopper by Mosaic GPU (FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2).

A thread block has three warpgroups, as in FlashAttention-3 (arXiv 2407.08608, section 3.1). One
fetches: it copies tiles by TMA into rings of swizzled shared memory. Two work: each keeps 64 rows,
what a wgmma takes, and accumulates in registers. In the forward pass they take turns, one computing
its softmax while the other has the tensor cores.

Which blocks hold a visible pair comes as a list for each tile, the blocks without a mask first. What
is not listed is neither fetched nor multiplied.

Shapes: B batch, N query heads, K key heads, G = N / K, T queries, S keys, H head size, all padded to
whole tiles; bq and bk are the block lengths; I tiles that are kept, J blocks that pass by.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from aya_kernels.attention.blocks import Lists, visible_blocks
from aya_kernels.attention.inputs import LONGEST_WINDOW, MASKED, Inputs, Options
from aya_kernels.attention.mask import pairs_seen
from aya_kernels.backends import Target, interpreted
from aya_kernels.compat import InterpretGPUParams, cuda_runtime, load

HEAD_SIZES = (64, 128, 256)
DTYPES = (jnp.bfloat16, jnp.float16)
# Runtimes of CUDA, the last left out, whose ptxas miscompiles causal masks: found by the authors of
# jax.experimental.pallas.ops.gpu.attention_mgpu, whose mask has the form of `_masked`.
MISCOMPILED = 12080, 12091
# The warpgroups that work; the one after them fetches.
WORKERS = 2
# Rows that a worker keeps: the M of a wgmma.
ROWS = 64
# Registers a thread: (2 x 240 + 24) x 128 threads are the 64 Ki of an SM. A product of 64 rows takes
# columns / 2 of them.
WORKER_REGISTERS, FETCHER_REGISTERS = 240, 24
LOG2E = math.log2(math.e)
# Below every score and above the masked ones, so that a row that sees nothing sums exp2(-inf).
FLOOR = -1e29

BY_ROW, BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


class Arrays(NamedTuple):
    """What every kernel reads."""

    q: Any  # [B, T, N, H]
    k: Any  # [B, S, K, H]
    v: Any  # [B, S, K, H]
    q_ids: Any  # int32 [B, T] or None
    kv_ids: Any  # int32 [B, S] or None
    window: Any  # int32 [1] or None
    shift: Any  # int32 [1], the position of query 0 less that of key 0


class Ring(NamedTuple):
    """Slots that the fetcher fills and the workers empty, in turn."""

    tiles: tuple[Any, ...]  # each [slots, ...]
    ready: Any
    free: Any

    @property
    def slots(self) -> int:
        return int(self.tiles[0].shape[0])

    def put(self, step: Any, *sources: Any) -> None:
        slot = lax.rem(step, self.slots)
        plgpu.barrier_wait(self.free.at[slot])
        for source, tile in zip(sources, self.tiles, strict=True):
            plgpu.copy_gmem_to_smem(source, tile.at[slot], self.ready.at[slot])

    def get(self, step: Any) -> tuple[Any, ...]:
        slot = lax.rem(step, self.slots)
        plgpu.barrier_wait(self.ready.at[slot])
        return tuple(tile.at[slot] for tile in self.tiles)

    def release(self, step: Any) -> None:
        plgpu.barrier_arrive(self.free.at[lax.rem(step, self.slots)])

    def start(self) -> None:
        """By the workers: every slot is free."""
        for slot in range(self.slots):
            plgpu.barrier_arrive(self.free.at[slot])

    def finish(self, steps: Any) -> None:
        """By the fetcher: wait until every slot is free again."""

        @pl.loop(steps, steps + self.slots)
        def _(step: Any) -> None:
            plgpu.barrier_wait(self.free.at[lax.rem(step, self.slots)])


def _tile(count: int, rows: int, x: Arrays, swizzle: int = 128) -> Any:
    """Return [count, rows, H] of shared memory, swizzled as TMA writes and wgmma reads it."""
    columns = swizzle // x.q.dtype.itemsize
    transforms = plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(swizzle)
    return plgpu.SMEM((count, rows, x.q.shape[-1]), x.q.dtype, transforms=transforms)


def _ring(slots: int, rows: int, x: Arrays, swizzle: int = 128, vector: bool = False) -> Ring:
    """Return a ring of tiles [rows, H], and with each a float32 `vector` [rows]."""
    vectors = (plgpu.SMEM((slots, rows), jnp.float32),) if vector else ()
    tiles = (_tile(slots, rows, x, swizzle), *vectors)
    return Ring(
        tiles,
        plgpu.Barrier(num_arrivals=len(tiles), num_barriers=slots),
        plgpu.Barrier(num_arrivals=WORKERS, num_barriers=slots),
    )


# The interpreter knows no layouts, and of products only those of two tiles in shared memory.
def _laid(x: jax.Array, layout: Any) -> jax.Array:
    return x if interpreted() else plgpu.layout_cast(x, layout)


def _read(ref: Any, layout: Any) -> jax.Array:
    return ref[...] if interpreted() else load(ref, layout=layout, optimized=False)


def _multiply(
    *pairs: tuple[Any, Any],
    transposed: bool = False,
    onto: tuple[jax.Array, ...] = (),
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[jax.Array, ...]:
    """Return the float32 a @ b of each pair, or a @ b^T, added to `onto`.

    `a` is in registers or shared memory and `b` in shared memory; `meanwhile` runs during the products.
    """
    if interpreted():
        axes = (((1,), (1 if transposed else 0,)), ((), ()))
        products = tuple(
            lax.dot_general(
                a if isinstance(a, jax.Array) else a[...],
                b[...],
                axes,
                preferred_element_type=jnp.float32,
            )
            for a, b in pairs
        )
        meanwhile()
        return tuple(p + o for p, o in zip(products, onto, strict=True)) if onto else products

    def run(*refs: Any) -> None:
        for ref, (a, b) in zip(refs, pairs, strict=True):
            plgpu.wgmma(ref, a, b.transpose((1, 0)) if transposed else b)
        meanwhile()

    if onto:
        return pl.run_state(lambda refs: run(*refs))(tuple(plgpu.ACC.init(o) for o in onto))

    def run_and_read(*refs: Any) -> tuple[jax.Array, ...]:
        run(*refs)
        return tuple(ref[...] for ref in refs)

    shapes = [(a.shape[0], b.shape[0 if transposed else 1]) for a, b in pairs]
    return pl.run_scoped(run_and_read, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))


def _spread(vector: jax.Array, like: jax.Array, axis: int) -> jax.Array:
    return lax.broadcast_in_dim(vector, like.shape, [axis])


def _factor(o: Options) -> float:
    """Return what takes `_capped` scores to those of the base 2."""
    return (o.scale if o.softcap is None else o.softcap) * LOG2E


def _capped(o: Options, s: jax.Array) -> jax.Array:
    """Return products as they are without a softcap, else `tanh(scale * s / softcap)`."""
    if o.softcap is None:
        return s
    # The tanh of the hardware is good for 11 bits; this one, 1 - 2 / (exp(2 x) + 1), for float32.
    root = lax.rsqrt(jnp.exp2(s * (2 * LOG2E * o.scale / o.softcap)) + 1.0)
    return 1.0 - 2.0 * root * root


def _masked(
    o: Options, keys: int, x: Arrays, s: jax.Array, first_q: Any, first_k: Any, q_axis: int
) -> jax.Array:
    """Return scores with -inf where a pair is not visible; `keys` is S before the padding."""
    b = lax.axis_index("batch")
    k_axis = 1 - q_axis

    def place(axis: int, first: Any) -> jax.Array:
        return _laid(lax.broadcasted_iota(jnp.int32, s.shape, axis), plgpu.Layout.WGMMA) + first

    column = place(k_axis, first_k)
    window = None if x.window is None else x.window[0]
    mask = pairs_seen(o, place(q_axis, first_q + x.shift[0]), column, window)
    if x.k.shape[1] != keys:
        mask &= column < keys
    if x.q_ids is not None:
        by_axis = (BY_ROW, BY_COLUMN)
        q_ids = _read(x.q_ids.at[b, pl.ds(first_q, s.shape[q_axis])], by_axis[q_axis])
        kv_ids = _read(x.kv_ids.at[b, pl.ds(first_k, s.shape[k_axis])], by_axis[k_axis])
        # A mark that no key has stands for the padding among the queries.
        q_ids = _spread(jnp.where(q_ids > 0, q_ids, jnp.iinfo(jnp.int32).min), s, q_axis)
        mask &= q_ids == _spread(kv_ids, s, k_axis)
    return jnp.where(mask, s, -jnp.inf)


def _each_block(
    lists: Lists, i: Any, heads: int, run: Callable[..., Any], carry: Any = None
) -> Any:
    """Call `carry = run(masked, step, head, block, carry)` for what tile `i` sees, `heads` times.

    Fetcher and workers go through the same steps.
    """
    b = lax.axis_index("batch")

    def part(masked: bool, first: Any, length: Any, carry: Any) -> Any:
        def one(step: Any, carry: Any) -> Any:
            head, place = (
                (0, step) if heads == 1 else (lax.div(step, length), lax.rem(step, length))
            )
            block = lists.index[b, i, first + place]
            return run(masked, heads * first + step, head, block, carry)

        return lax.fori_loop(0, heads * length, one, carry)

    whole = lists.whole[b, i]
    carry = part(False, 0, whole, carry)
    return part(True, whole, lists.count[b, i] - whole, carry)


def _forward_kernel(  # type: ignore[no-untyped-def]
    o: Options,
    keys: int,
    bk: int,
    x,
    lists,
    out_ref,
    lse_ref,
    q_tile,
    lse_tile,
    k_ring,
    v_ring,
    q_ready,
    turn,
):
    b, n, wg = (lax.axis_index(name) for name in ("batch", "head", "wg"))
    # The last tiles see most where attention is causal: they start first.
    i = lists.count.shape[1] - 1 - lax.axis_index("tile")

    @pl.when(wg == WORKERS)
    def _() -> None:
        plgpu.set_max_registers(FETCHER_REGISTERS, action="decrease")
        _fetch_keys(x, lists, i, n, bk, k_ring, v_ring)

    @pl.when(wg < WORKERS)
    def _() -> None:
        plgpu.set_max_registers(WORKER_REGISTERS, action="increase")
        first = (i * WORKERS + wg) * ROWS
        rows = (b, pl.ds(first, ROWS), n)
        q = q_tile.at[wg]
        plgpu.copy_gmem_to_smem(x.q.at[rows], q, q_ready.at[wg])
        k_ring.start()
        v_ring.start()

        def take_turn() -> None:
            plgpu.barrier_arrive(turn)
            plgpu.barrier_wait(turn)

        def attend(masked: bool, step: Any, _: Any, block: Any, carry: Any) -> Any:
            acc, top, total = carry
            (k,) = k_ring.get(step)
            # The tensor cores go to the other worker as soon as this product is on its way.
            (s,) = _multiply((q, k), transposed=True, meanwhile=take_turn)
            k_ring.release(step)
            s = _capped(o, s)
            if masked:
                s = _masked(o, keys, x, s, first, block * bk, 0)
            new_top = jnp.maximum(top, s.max(1) * _factor(o))
            shrink = jnp.exp2(top - new_top)
            p = jnp.exp2(s * _factor(o) - _spread(new_top, s, 0))
            acc *= _spread(shrink, acc, 0)
            total = total * shrink + p.sum(1)
            # Keeps the softmax on this side of the turn.
            acc, new_top, total, p = lax.optimization_barrier(
                (acc, new_top, total, p.astype(x.v.dtype))
            )
            plgpu.barrier_arrive(turn)
            (v,) = v_ring.get(step)
            plgpu.barrier_wait(turn)
            (acc,) = _multiply((p, v), onto=(acc,))
            v_ring.release(step)
            return acc, new_top, total

        plgpu.barrier_wait(q_ready.at[wg])
        pl.when(wg == 1)(take_turn)
        zeros = _laid(jnp.zeros((ROWS, x.q.shape[-1]), jnp.float32), plgpu.Layout.WGMMA)
        top, total = (_laid(jnp.full((ROWS,), a, jnp.float32), BY_ROW) for a in (FLOOR, 0.0))
        acc, top, total = _each_block(lists, i, 1, attend, (zeros, top, total))
        pl.when(wg == 0)(take_turn)

        seeing = total > 0
        total = jnp.where(seeing, total, 1.0)
        q[...] = (acc * _spread(1.0 / total, acc, 0)).astype(x.q.dtype)
        lse_tile[wg] = jnp.where(seeing, top * (1 / LOG2E) + jnp.log(total), MASKED)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q, out_ref.at[rows])
        plgpu.copy_smem_to_gmem(lse_tile.at[wg], lse_ref.at[b, n, pl.ds(first, ROWS)])
        plgpu.wait_smem_to_gmem(0)


def _fetch_keys(
    x: Arrays, lists: Lists, i: Any, n: Any, bk: int, k_ring: Ring, v_ring: Ring
) -> None:
    b = lax.axis_index("batch")
    head = lax.div(n, x.q.shape[2] // x.k.shape[2])

    def fetch(_: Any, step: Any, __: Any, block: Any, ___: Any) -> None:
        rows = (b, pl.ds(block * bk, bk), head)
        k_ring.put(step, x.k.at[rows])
        v_ring.put(step, x.v.at[rows])

    _each_block(lists, i, 1, fetch)
    for ring in (k_ring, v_ring):
        ring.finish(lists.count[b, i])


def _probabilities(
    o: Options, s: jax.Array, lse: jax.Array, q_axis: int, mask: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array | float]:
    """Return the probabilities of a block and the slope of the cap."""
    s = _capped(o, s)
    slope = 1.0 if o.softcap is None else 1.0 - s * s
    return jnp.exp2(mask(s) * _factor(o) - _spread(lse * LOG2E, s, q_axis)), slope


def _backward_q_kernel(  # type: ignore[no-untyped-def]
    o: Options,
    keys: int,
    bk: int,
    x,
    lists,
    g_ref,
    lse_ref,
    delta_ref,
    dq_ref,
    q_tile,
    g_tile,
    k_ring,
    v_ring,
    ready,
):
    b, n, wg = (lax.axis_index(name) for name in ("batch", "head", "wg"))
    i = lists.count.shape[1] - 1 - lax.axis_index("tile")

    @pl.when(wg == WORKERS)
    def _() -> None:
        plgpu.set_max_registers(FETCHER_REGISTERS, action="decrease")
        _fetch_keys(x, lists, i, n, bk, k_ring, v_ring)

    @pl.when(wg < WORKERS)
    def _() -> None:
        plgpu.set_max_registers(WORKER_REGISTERS, action="increase")
        first = (i * WORKERS + wg) * ROWS
        rows = (b, pl.ds(first, ROWS), n)
        q, g = q_tile.at[wg], g_tile.at[wg]
        plgpu.copy_gmem_to_smem(x.q.at[rows], q, ready.at[wg])
        plgpu.copy_gmem_to_smem(g_ref.at[rows], g, ready.at[wg])
        k_ring.start()
        v_ring.start()
        lse, delta = (_read(a.at[b, n, pl.ds(first, ROWS)], BY_ROW) for a in (lse_ref, delta_ref))

        def add(masked: bool, step: Any, _: Any, block: Any, dq: jax.Array) -> jax.Array:
            def mask(s: jax.Array) -> jax.Array:
                return _masked(o, keys, x, s, first, block * bk, 0) if masked else s

            (k,), (v,) = k_ring.get(step), v_ring.get(step)
            s, dp = _multiply((q, k), (g, v), transposed=True)
            v_ring.release(step)
            p, slope = _probabilities(o, s, lse, 0, mask)
            ds = p * (dp - _spread(delta, s, 0)) * slope
            (dq,) = _multiply((ds.astype(x.k.dtype), k), onto=(dq,))
            k_ring.release(step)
            return dq

        plgpu.barrier_wait(ready.at[wg])
        zeros = _laid(jnp.zeros((ROWS, x.q.shape[-1]), jnp.float32), plgpu.Layout.WGMMA)
        dq = _each_block(lists, i, 1, add, zeros)
        q[...] = (dq * o.scale).astype(x.q.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q, dq_ref.at[rows])
        plgpu.wait_smem_to_gmem(0)


def _backward_kv_kernel(  # type: ignore[no-untyped-def]
    o: Options,
    keys: int,
    bq: int,
    split: bool,
    x,
    lists,
    g_ref,
    lse_ref,
    delta_ref,
    dk_ref,
    dv_ref,
    k_tile,
    v_tile,
    q_ring,
    g_ring,
    ready,
    met,
):
    b, head, i, wg = (lax.axis_index(name) for name in ("batch", "head", "tile", "wg"))
    groups = x.q.shape[2] // x.k.shape[2]

    @pl.when(wg == WORKERS)
    def _() -> None:
        plgpu.set_max_registers(FETCHER_REGISTERS, action="decrease")

        def fetch(_: Any, step: Any, member: Any, block: Any, __: Any) -> None:
            n, queries = head * groups + member, pl.ds(block * bq, bq)
            q_ring.put(step, x.q.at[b, queries, n], lse_ref.at[b, n, queries])
            g_ring.put(step, g_ref.at[b, queries, n], delta_ref.at[b, n, queries])

        _each_block(lists, i, groups, fetch)
        for ring in (q_ring, g_ring):
            ring.finish(lists.count[b, i] * groups)

    @pl.when(wg < WORKERS)
    def _() -> None:
        plgpu.set_max_registers(WORKER_REGISTERS, action="increase")
        # Both accumulators of 64 rows of 256 would be all 255 registers of a thread: there the
        # workers share the rows, and each adds up half of the columns.
        mine = 0 if split else wg
        width = x.k.shape[-1] // (WORKERS if split else 1)
        columns = pl.ds(wg * width if split else 0, width)
        first = i * ROWS if split else (i * WORKERS + wg) * ROWS
        rows = (b, pl.ds(first, ROWS), head)
        k, v = k_tile.at[mine], v_tile.at[mine]

        def fetch() -> None:
            plgpu.copy_gmem_to_smem(x.k.at[rows], k, ready.at[mine])
            plgpu.copy_gmem_to_smem(x.v.at[rows], v, ready.at[mine])

        pl.when(wg == 0)(fetch) if split else fetch()
        q_ring.start()
        g_ring.start()

        def add(masked: bool, step: Any, _: Any, block: Any, carry: Any) -> Any:
            def mask(s: jax.Array) -> jax.Array:
                return _masked(o, keys, x, s, block * bq, first, 1) if masked else s

            (q, lse), (g, delta) = q_ring.get(step), g_ring.get(step)
            s, dp = _multiply((k, q), (v, g), transposed=True)
            # One after the other: they take 16 registers each.
            p, slope = _probabilities(o, s, _read(lse, BY_COLUMN), 1, mask)
            ds = p * (dp - _spread(_read(delta, BY_COLUMN), s, 1)) * slope
            dtype = x.q.dtype
            carry = _multiply(
                (ds.astype(dtype), q.at[:, columns]),
                (p.astype(dtype), g.at[:, columns]),
                onto=carry,
            )
            q_ring.release(step)
            g_ring.release(step)
            return carry

        plgpu.barrier_wait(ready.at[mine])
        zeros = _laid(jnp.zeros((ROWS, width), jnp.float32), plgpu.Layout.WGMMA)
        dk, dv = _each_block(lists, i, groups, add, (zeros, zeros))

        def meet() -> None:
            plgpu.barrier_arrive(met)
            plgpu.barrier_wait(met)

        if split:
            meet()
        k.at[:, columns][...] = (dk * o.scale).astype(x.k.dtype)
        v.at[:, columns][...] = dv.astype(x.v.dtype)
        plgpu.commit_smem()
        if split:
            meet()
            pl.when(wg == 0)(lambda: plgpu.copy_smem_to_gmem(k, dk_ref.at[rows]))
            pl.when(wg == 1)(lambda: plgpu.copy_smem_to_gmem(v, dv_ref.at[rows]))
        else:
            plgpu.copy_smem_to_gmem(k, dk_ref.at[rows])
            plgpu.copy_smem_to_gmem(v, dv_ref.at[rows])
        plgpu.wait_smem_to_gmem(0)


def _pad(x: jax.Array, axis: int, block: int) -> jax.Array:
    room = -x.shape[axis] % block
    return jnp.pad(x, [(0, room if a == axis else 0) for a in range(x.ndim)]) if room else x


def _head_size(x: Inputs) -> int:
    return next(size for size in HEAD_SIZES if size >= x.q.shape[-1])


def _arrays(x: Inputs, bq: int, bk: int) -> Arrays:
    """Return the inputs padded to whole tiles; a segment id of 0 hides what was added."""
    h = _head_size(x)
    shift = jnp.int32(0)
    if x.q_offset is not None:
        shift += x.q_offset
    if x.kv_offset is not None:
        shift -= x.kv_offset
    return Arrays(
        _pad(_pad(x.q, 3, h), 1, bq),
        _pad(_pad(x.k, 3, h), 1, bk),
        _pad(_pad(x.v, 3, h), 1, bk),
        None if x.q_ids is None else _pad(x.q_ids, 1, bq),
        None if x.kv_ids is None else _pad(x.kv_ids, 1, bk),
        None if x.window is None else jnp.minimum(x.window, LONGEST_WINDOW)[None],
        shift[None],
    )


def _call(
    kernel: Callable[..., None], name: str, out: Any, scratch: list[Any], grid: tuple[int, ...]
) -> Any:
    return plgpu.kernel(
        kernel,
        out_type=out,
        scratch_types=scratch,
        grid=grid,
        grid_names=("batch", "head", "tile"),
        num_threads=WORKERS + 1,
        thread_name="wg",
        kernel_name=f"attention_{name}",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        interpret=InterpretGPUParams() if interpreted() else None,
    )


def forward(o: Options, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """Return the output [B, T, N, H] and the log-sum-exp, float32 [B, N, T], as `flash` has it.

    Shared memory for H 128: q 32 KiB, and k and v 2 x 32 KiB each: 160 of 227 KiB; for 256, with
    half the block, 192. Registers a thread for H 128: 64 for the accumulator, 64 for the scores and
    32 for them in 16 bits; for 256: 128, 32 and 16.
    """
    b, t, n, h = x.q.shape
    bq, bk = WORKERS * ROWS, 64 if _head_size(x) == 256 else 128
    lists = Lists.of(*visible_blocks(o, x, bq, bk))
    a = _arrays(x, bq, bk)
    out, lse = _call(
        partial(_forward_kernel, o, x.k.shape[1], bk),
        "forward",
        [_like(a.q), jax.ShapeDtypeStruct((b, n, a.q.shape[1]), jnp.float32)],
        [
            _tile(WORKERS, ROWS, a),
            plgpu.SMEM((WORKERS, ROWS), jnp.float32),
            _ring(2, bk, a),
            _ring(2, bk, a),
            plgpu.Barrier(num_barriers=WORKERS),
            plgpu.Barrier(num_arrivals=WORKERS),
        ],
        (b, n, a.q.shape[1] // bq),
    )(a, lists)
    return out[:, :t, :, :h], lse[:, :, :t]


def backward(
    o: Options, x: Inputs, lse: jax.Array, delta: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients to q, k and v, as `flash` has it."""
    return _backward_q(o, x, lse, delta, g), *_backward_kv(o, x, lse, delta, g)


def _backward_q(o: Options, x: Inputs, lse: jax.Array, delta: jax.Array, g: jax.Array) -> jax.Array:
    """Return the gradient to q.

    Shared memory for H 128: q and g 32 KiB each, and k and v 2 x 16 each: 128 of 227 KiB; for 256,
    with half the block, 192. Registers for H 128: 64 for the accumulator and 2 x 32 for the scores
    and their gradient; for 256: 128 and 2 x 16, as 2 x 32 would spill.
    """
    b, t, n, h = x.q.shape
    bq, bk = WORKERS * ROWS, {64: 128, 128: 64, 256: 32}[_head_size(x)]
    swizzle = _swizzle(bk)
    lists = Lists.of(*visible_blocks(o, x, bq, bk))
    a = _arrays(x, bq, bk)
    dq = _call(
        partial(_backward_q_kernel, o, x.k.shape[1], bk),
        "backward_q",
        _like(a.q),
        [
            _tile(WORKERS, ROWS, a, swizzle),
            _tile(WORKERS, ROWS, a, swizzle),
            _ring(2, bk, a, swizzle),
            _ring(2, bk, a, swizzle),
            plgpu.Barrier(num_arrivals=2, num_barriers=WORKERS),
        ],
        (b, n, a.q.shape[1] // bq),
    )(a, lists, *_gradients(a, lse, delta, g))
    return dq[:, :t, :, :h]


def _backward_kv(
    o: Options, x: Inputs, lse: jax.Array, delta: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients to k and v, summed over the heads of a group.

    Shared memory for H 128: k and v 32 KiB each, and q and g 2 x 16 each: 128 of 227 KiB; for 256,
    where the workers share their rows and the block is half, as much. Registers for H 128: 2 x 64
    for the accumulators and 2 x 32 for the scores and their gradient; for 256: 2 x 64 and 2 x 16.
    """
    h = x.q.shape[3]
    s = x.k.shape[1]
    split = _head_size(x) == 256
    kept = 1 if split else WORKERS
    bq, bk = 32 if split else 64, kept * ROWS
    swizzle = _swizzle(bq)
    lists = Lists.of(*(jnp.swapaxes(m, 1, 2) for m in visible_blocks(o, x, bq, bk)))
    a = _arrays(x, bq, bk)
    dk, dv = _call(
        partial(_backward_kv_kernel, o, s, bq, split),
        "backward_kv",
        [_like(a.k), _like(a.v)],
        [
            _tile(kept, ROWS, a, swizzle),
            _tile(kept, ROWS, a, swizzle),
            _ring(2, bq, a, swizzle, vector=True),
            _ring(2, bq, a, swizzle, vector=True),
            plgpu.Barrier(num_arrivals=2, num_barriers=kept),
            plgpu.Barrier(num_arrivals=WORKERS),
        ],
        (a.k.shape[0], a.k.shape[2], a.k.shape[1] // bk),
    )(a, lists, *_gradients(a, lse, delta, g))
    return dk[:, :s, :, :h], dv[:, :s, :, :h]


def _swizzle(block: int) -> int:
    """Return the bytes of the swizzle that wgmma takes for a product over `block` numbers."""
    return 128 if block % 64 == 0 else 64


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _gradients(
    a: Arrays, lse: jax.Array, delta: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return g, lse and delta padded as q is; zeros add nothing to any gradient."""
    t, h = a.q.shape[1], a.q.shape[3]
    return _pad(_pad(g.astype(a.q.dtype), 3, h), 1, t), _pad(lse, 2, t), _pad(delta, 2, t)


def refuses(target: Target, o: Options, x: Inputs) -> str | None:
    """Return in a line why these kernels cannot compute this call on `target`, or None."""
    if target.platform == "cuda":
        if int(target.capability or 0) != 9:
            return (
                f"it is written for Hopper, compute capability 9, and this has {target.capability}"
            )
        runtime = cuda_runtime()
        if runtime is not None and MISCOMPILED[0] <= runtime < MISCOMPILED[1]:
            return f"ptxas of CUDA 12.8.0 to 12.9.0 miscompiles masks, and this is {runtime}"
    if x.q.dtype not in DTYPES or {x.k.dtype, x.v.dtype} != {x.q.dtype}:
        return f"it takes bfloat16 or float16, all alike, and not {x.q.dtype}, {x.k.dtype}, {x.v.dtype}"
    if x.q.shape[-1] > HEAD_SIZES[-1]:
        return f"it takes heads of at most {HEAD_SIZES[-1]}, and these have {x.q.shape[-1]}"
    if o.scale <= 0:
        return f"it takes a scale above 0, and not {o.scale}"
    return None
