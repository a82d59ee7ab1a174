"""Flash attention for CUDA cards through Triton (FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2).

A program keeps one tile in registers and lets blocks pass by: a tile of queries with blocks of keys in
the forward pass and for the gradient to q, a tile of keys with blocks of the queries of all heads of
its group for the gradients to k and v. Those are summed in one program, without atomics, so that they
are the same each time. Which blocks hold a visible pair comes as a list for each tile, the blocks
without a mask first; what is not listed is neither fetched nor multiplied.

Shapes: B batch, N query heads, K key heads, T queries, S keys, H head size; I tiles that are kept, J
blocks that pass by.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from aya_kernels.attention.blocks import Lists, visible_blocks
from aya_kernels.attention.inputs import LONGEST_WINDOW, MASKED, Inputs, Options
from aya_kernels.attention.mask import pairs_seen
from aya_kernels.backends import Target, interpreted

DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
LONGEST_HEAD = 256
# The tensor cores take 16 rows and columns at least.
LEAST = 16
# Bytes of the one tile that is kept and of one block that passes by. Two blocks at a time pass, each
# with the next on its way, and two tiles are kept in the backward passes: at most 4 * 16 + 32 KiB, as
# consumer cards have 99 KiB of shared memory (an A100 has 163, where two programs share it).
BLOCK_BYTES = 16 << 10
TILE_BYTES = {"forward": 32 << 10, "backward": 16 << 10}
LONGEST = {"forward": (128, 64), "backward": (64, 64)}
LOG2E = math.log2(math.e)
# Below every score and above minus infinity, so that a row that sees nothing sums exp2(-inf).
FLOOR = -1e29


class Arrays(NamedTuple):
    """What every kernel reads."""

    q: Any  # [B, T, N, H]
    k: Any  # [B, S, K, H]
    v: Any  # [B, S, K, H]
    q_ids: Any  # int32 [B, T] or None
    kv_ids: Any  # int32 [B, S] or None
    window: Any  # int32 [1] or None
    shift: Any  # int32 [1], the position of query 0 less that of key 0

    @classmethod
    def of(cls, x: Inputs) -> "Arrays":
        shift = jnp.int32(0)
        if x.q_offset is not None:
            shift += x.q_offset
        if x.kv_offset is not None:
            shift -= x.kv_offset
        window = None if x.window is None else jnp.minimum(x.window, LONGEST_WINDOW)[None]
        return cls(*x[:5], window, shift[None])


class Cut(NamedTuple):
    """How the work is cut; powers of two, as Triton wants them."""

    kept: int  # rows of a tile
    passing: int  # rows of a block
    warps: int

    @classmethod
    def of(cls, way: str, x: Inputs, kept: int, passing: int) -> "Cut":
        """Return it for as many rows that are kept, and that pass by, in all."""
        row = _columns(x.q.shape[3]) * x.q.dtype.itemsize
        most = TILE_BYTES[way] // row, BLOCK_BYTES // row
        tile, block = (
            max(min(fits, longest, pl.next_power_of_2(length)), LEAST)
            for fits, longest, length in zip(most, LONGEST[way], (kept, passing), strict=True)
        )
        # Four warps have no room in their registers for the accumulators of longer rows.
        return cls(tile, block, 4 if row <= 128 else 8)


def _columns(h: int) -> int:
    return max(pl.next_power_of_2(h), LEAST)


def _rows_of(number: Any, length: int) -> jax.Array:
    return number * length + jnp.arange(length)


def _place(ref: Any, b: Any, rows: jax.Array, head: Any, ragged: bool) -> tuple[Any, Any]:
    """Return where some rows of a head of [B, L, heads, H] are, and which of those places exist."""
    length, h = ref.shape[1], ref.shape[3]
    column = jnp.arange(_columns(h))
    inside = None
    if ragged and length % rows.size:
        inside = (rows < length)[:, None]
    if column.size != h:
        held = (column < h)[None]
        inside = held if inside is None else inside & held
    if inside is not None:
        inside = jnp.broadcast_to(inside, (rows.size, column.size))
    return ref.at[b, rows[:, None], head, column[None]], inside


def _load(ref: Any, b: Any, rows: jax.Array, head: Any, ragged: bool = True) -> jax.Array:
    """Return some rows of a head, [rows, H]; zeros where there are none, which may be if `ragged`."""
    place, inside = _place(ref, b, rows, head, ragged)
    found: jax.Array = plgpu.load(place, mask=inside, other=None if inside is None else 0.0)
    return found


def _store(ref: Any, b: Any, rows: jax.Array, head: Any, value: jax.Array) -> None:
    place, inside = _place(ref, b, rows, head, True)
    plgpu.store(place, value.astype(ref.dtype), mask=inside)


def _load_line(ref: Any, *place: Any, other: Any = 0) -> jax.Array:
    """Return some entries of a line, the last of `place`; `other` beyond its end."""
    found: jax.Array = plgpu.load(ref.at[place], mask=place[-1] < ref.shape[-1], other=other)
    return found


def _dot(a: jax.Array, b: jax.Array, transposed: bool = False) -> jax.Array:
    """Return float32 a @ b, or a @ b^T."""
    # float32 follows jax_default_matmul_precision; 16 bits have one precision only.
    precision = None if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    axes = (((1,), (1 if transposed else 0,)), ((), ()))
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _along(vector: jax.Array, axis: int) -> jax.Array:
    return vector[:, None] if axis == 0 else vector[None]


def _unit(o: Options) -> float:
    """Return what takes `_capped` products to scores."""
    return o.scale if o.softcap is None else o.softcap


def _capped(o: Options, products: jax.Array) -> jax.Array:
    """Return products as they are without a softcap, else `tanh(scale * products / softcap)`."""
    if o.softcap is None:
        return products
    return jnp.tanh(products * (o.scale / o.softcap))


def _visible(
    o: Options, x: Arrays, b: Any, rows: jax.Array, columns: jax.Array, q_axis: int
) -> jax.Array:
    """Return which pairs of some queries and keys are visible; those past the last query may be."""
    k_axis = 1 - q_axis
    window = None if x.window is None else x.window[0]
    seen = pairs_seen(o, _along(rows + x.shift[0], q_axis), _along(columns, k_axis), window)
    seen &= _along(columns < x.k.shape[1], k_axis)
    if x.q_ids is not None:
        q_ids, kv_ids = _load_line(x.q_ids, b, rows), _load_line(x.kv_ids, b, columns)
        # A mark that no key has stands for the padding among the queries.
        q_ids = jnp.where(q_ids > 0, q_ids, jnp.iinfo(jnp.int32).min)
        seen &= _along(q_ids, q_axis) == _along(kv_ids, k_axis)
    return seen


def _each_block(lists: Lists, b: Any, i: Any, run: Callable[..., Any], carry: Any) -> Any:
    """Return the carry after `carry = run(masked, block, carry)` for each block that tile `i` sees."""

    def step(masked: bool, step: Any, carry: Any) -> Any:
        return run(masked, lists.index[b, i, step], carry)

    whole = lists.whole[b, i]
    carry = lax.fori_loop(0, whole, partial(step, False), carry)
    return lax.fori_loop(whole, lists.count[b, i], partial(step, True), carry)


def _zeros(rows: int, like: Any) -> jax.Array:
    return jnp.zeros((rows, _columns(like.shape[3])), jnp.float32)


def _forward_kernel(o: Options, cut: Cut, x, lists, out_ref, lse_ref) -> None:  # type: ignore[no-untyped-def]
    # The last tiles see most where attention is causal: they start first.
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    n, b = pl.program_id(1), pl.program_id(2)
    head = lax.div(n, x.q.shape[2] // x.k.shape[2])
    rows = _rows_of(i, cut.kept)
    q = _load(x.q, b, rows, n)
    base = _unit(o) * LOG2E

    def attend(masked: bool, block: Any, carry: Any) -> Any:
        acc, top, total = carry
        columns = _rows_of(block, cut.passing)
        k = _load(x.k, b, columns, head, masked)
        s = _capped(o, _dot(q, k, transposed=True))
        if masked:
            s = jnp.where(_visible(o, x, b, rows, columns, 0), s, -jnp.inf)
        new_top = jnp.maximum(top, s.max(1))
        # Only differences are scaled: a scaled score of 1e4 would be a thousandth off.
        shrink = jnp.exp2((top - new_top) * base)
        p = jnp.exp2((s - new_top[:, None]) * base)
        v = _load(x.v, b, columns, head, masked)
        acc = acc * shrink[:, None] + _dot(p.astype(v.dtype), v)
        return acc, new_top, total * shrink + p.sum(1)

    top, total = (jnp.full(cut.kept, a, jnp.float32) for a in (FLOOR, 0.0))
    carry = _zeros(cut.kept, x.q), top, total
    acc, top, total = _each_block(lists, b, i, attend, carry)
    seeing = total > 0
    total = jnp.where(seeing, total, 1.0)
    _store(out_ref, b, rows, n, acc / total[:, None])
    lse = jnp.where(seeing, top * _unit(o) + jnp.log(total), MASKED)
    plgpu.store(lse_ref.at[b, n, rows], lse, mask=rows < lse_ref.shape[2])


def _gradient(
    o: Options,
    products: jax.Array,
    lse: jax.Array,
    d_weights: jax.Array,
    delta: jax.Array,
    seen: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Return the weights of a block and the gradient to its scores, less the scale."""
    s = _capped(o, products)
    p = jnp.exp(s * _unit(o) - lse)
    if seen is not None:
        p = jnp.where(seen, p, 0.0)
    ds = p * (d_weights - delta)
    return p, ds if o.softcap is None else ds * (1.0 - s * s)


def _backward_q_kernel(  # type: ignore[no-untyped-def]
    o: Options, cut: Cut, x, lists, g_ref, lse_ref, delta_ref, dq_ref
) -> None:
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    n, b = pl.program_id(1), pl.program_id(2)
    head = lax.div(n, x.q.shape[2] // x.k.shape[2])
    rows = _rows_of(i, cut.kept)
    q, g = _load(x.q, b, rows, n), _load(g_ref, b, rows, n)
    lse, delta = (_load_line(ref, b, n, rows)[:, None] for ref in (lse_ref, delta_ref))

    def add(masked: bool, block: Any, dq: jax.Array) -> jax.Array:
        columns = _rows_of(block, cut.passing)
        k, v = (_load(ref, b, columns, head, masked) for ref in (x.k, x.v))
        seen = _visible(o, x, b, rows, columns, 0) if masked else None
        products, d_weights = _dot(q, k, transposed=True), _dot(g, v, transposed=True)
        _, ds = _gradient(o, products, lse, d_weights, delta, seen)
        return dq + _dot(ds.astype(k.dtype), k)

    dq = _each_block(lists, b, i, add, _zeros(cut.kept, x.q))
    _store(dq_ref, b, rows, n, dq * o.scale)


def _backward_kv_kernel(  # type: ignore[no-untyped-def]
    o: Options, cut: Cut, x, lists, g_ref, lse_ref, delta_ref, dk_ref, dv_ref
) -> None:
    # The first tiles are seen most where attention is causal.
    i, head, b = (pl.program_id(axis) for axis in range(3))
    groups = x.q.shape[2] // x.k.shape[2]
    columns = _rows_of(i, cut.kept)
    k, v = _load(x.k, b, columns, head), _load(x.v, b, columns, head)

    def add(n: Any, masked: bool, block: Any, carry: Any) -> Any:
        dk, dv = carry
        rows = _rows_of(block, cut.passing)
        q, g = (_load(ref, b, rows, n, masked) for ref in (x.q, g_ref))
        lse, delta = (_load_line(ref, b, n, rows)[None] for ref in (lse_ref, delta_ref))
        seen = _visible(o, x, b, rows, columns, 1) if masked else None
        products, d_weights = _dot(k, q, transposed=True), _dot(v, g, transposed=True)
        p, ds = _gradient(o, products, lse, d_weights, delta, seen)
        return dk + _dot(ds.astype(q.dtype), q), dv + _dot(p.astype(g.dtype), g)

    def add_head(member: Any, carry: Any) -> Any:
        return _each_block(lists, b, i, partial(add, head * groups + member), carry)

    dk, dv = lax.fori_loop(0, groups, add_head, (_zeros(cut.kept, x.k),) * 2)
    _store(dk_ref, b, columns, head, dk * o.scale)
    _store(dv_ref, b, columns, head, dv)


def _call(
    kernel: Callable[..., None], o: Options, cut: Cut, grid: tuple[int, ...], out: Any, *arrays: Any
) -> Any:
    return pl.pallas_call(
        partial(kernel, o, cut),
        grid=grid,
        out_shape=out,
        compiler_params=plgpu.CompilerParams(num_warps=cut.warps, num_stages=2),
        interpret=interpreted(),
    )(*arrays)


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def forward(o: Options, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """Return the output [B, T, N, H] and the log-sum-exp, float32 [B, N, T], as `flash` has it."""
    b, t, n, _ = x.q.shape
    cut = Cut.of("forward", x, t, x.k.shape[1])
    lists = Lists.of(*visible_blocks(o, x, cut.kept, cut.passing))
    out = [_like(x.q), jax.ShapeDtypeStruct((b, n, t), jnp.float32)]
    grid = pl.cdiv(t, cut.kept), n, b
    return tuple(_call(_forward_kernel, o, cut, grid, out, Arrays.of(x), lists))


def backward(
    o: Options, x: Inputs, lse: jax.Array, delta: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients to q, k and v, as `flash` has it."""
    b, t, n, _ = x.q.shape
    s, kv_heads = x.k.shape[1:3]
    arrays, rest = Arrays.of(x), (g.astype(x.q.dtype), lse, delta)
    cut = Cut.of("backward", x, t, s)
    lists = Lists.of(*visible_blocks(o, x, cut.kept, cut.passing))
    grid = pl.cdiv(t, cut.kept), n, b
    dq = _call(_backward_q_kernel, o, cut, grid, _like(x.q), arrays, lists, *rest)
    cut = Cut.of("backward", x, s, t)
    blocks = visible_blocks(o, x, cut.passing, cut.kept)
    lists = Lists.of(*(jnp.swapaxes(m, 1, 2) for m in blocks))
    grid = pl.cdiv(s, cut.kept), kv_heads, b
    out = [_like(x.k), _like(x.v)]
    dk, dv = _call(_backward_kv_kernel, o, cut, grid, out, arrays, lists, *rest)
    return dq, dk, dv


def refuses(target: Target, o: Options, x: Inputs) -> str | None:
    """Return in a line why these kernels cannot compute this call on `target`, or None."""
    if target.capability is not None and target.capability < 8.0:
        return f"it needs compute capability 8.0 and this is {target.capability}"
    if x.q.dtype not in DTYPES or {x.k.dtype, x.v.dtype} != {x.q.dtype}:
        return (
            f"it takes bfloat16, float16 or float32, all alike, and not {x.q.dtype}, {x.k.dtype}, "
            f"{x.v.dtype}"
        )
    if x.q.shape[-1] > LONGEST_HEAD:
        return f"it takes heads of at most {LONGEST_HEAD}, and these have {x.q.shape[-1]}"
    if o.scale <= 0:
        return f"it takes a scale above 0, and not {o.scale}"
    return None
