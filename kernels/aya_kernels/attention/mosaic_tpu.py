"""Flash attention as Pallas kernels for TPUs, forward and backward.

The score matrix is never made: blocks of keys pass under an online softmax, and the backward pass
makes the probabilities of a block again from each query's log-sum-exp (FlashAttention-2, arXiv
2307.08691, algorithms 1 and 2). On a CPU the same kernels run interpreted.

The grid walks the list of visible blocks that `schedule` makes, whose length is known only when the
call runs: a block that the mask empties has no step, so it is neither fetched nor computed, and only
blocks that the mask cuts through make it. A step takes several query heads of one group, which share
the keys, the values and the mask.

Where sums run over keys (the output and the gradient to q) a block of scores is [queries, keys], where
they run over queries (the gradients to k and v) it is [keys, queries]: no product needs a transposed
block of scores. What belongs to the rows of such a block is a column, which Mosaic keeps as 128 equal
lanes; it is made once for all steps of a row. What belongs to its columns is a row, taken as it is.

Shapes: B batch, N query heads, K key heads, G = N / K, T queries, S keys, H head size, all arrays
heads first; bq and bk are the block lengths.
"""

from collections.abc import Callable
from functools import partial, reduce
from operator import and_
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from aya_kernels.attention.blocks import visible_blocks
from aya_kernels.attention.inputs import MASKED, Inputs, Options
from aya_kernels.attention.schedule import Layout, schedule
from aya_kernels.backends import Target, interpreted

LANES = 128
# Block lengths by reckoning, not by measurement. Each step reads k and v once for ROWS rows of
# queries (bq of each head), which is 1,024 products a byte fetched in bfloat16; the v5e, v5p and v6e
# reach their peak at 240, 170 and 560. A step then has 268 million products (H = 128), which takes
# longer than it takes to start one. Longer blocks would compute more of what a mask hides.
ROWS, KEYS = 1024, 512
# The list of steps lies in SMEM, which has 1 MiB; longer sequences get longer blocks.
STEPS = 1 << 17
# The smallest VMEM of a v5e, v5p, v6e or v7x is 64 MiB. With these blocks the compiler asks for 5 MiB
# (bfloat16, H = 128) to 26 MiB (float32, H = 256, backward); what is left is for its own prefetches.
VMEM_BYTES = 32 << 20
# Where the running maximum starts: below every score, and so far above MASKED that
# exp(MASKED - FLOOR) is 0 also in a row that has seen nothing yet.
FLOOR = MASKED / 2


class Arrays(NamedTuple):
    """What forward and backward both read: heads first, lengths padded to whole blocks."""

    q: jax.Array  # [B, N, T, H]
    k: jax.Array  # [B, K, S, H]
    v: jax.Array  # [B, K, S, H]
    q_ids: jax.Array | None  # int32 [B, 1, T], padding -1
    kv_ids: jax.Array | None  # int32 [B, 1, S], padding 0


class Tiling(NamedTuple):
    """How the work is cut; static."""

    bq: int
    bk: int
    heads: int  # query heads a step, of one group
    parts: int  # into which a group is cut so: G / heads
    windowed: bool

    @classmethod
    def of(cls, x: Inputs) -> "Tiling":
        b, t, n, _ = x.q.shape
        s, kv_heads = x.k.shape[1:3]
        groups = n // kv_heads
        heads = max(d for d in range(1, ROWS // LANES + 1) if groups % d == 0)
        bq, bk = ROWS // heads // LANES * LANES, KEYS
        if interpreted():
            # To check the kernels: blocks so small that short rows have several.
            bq, bk = LANES, LANES
        while b * pl.cdiv(t, bq) * pl.cdiv(s, bk) > STEPS and max(bq, bk) < max(t, s):
            bq, bk = (bq, 2 * bk) if bk <= bq else (2 * bq, bk)
        bq, bk = _even(t, bq), _even(s, bk)
        return cls(bq, bk, heads, groups // heads, x.window is not None)


def _even(length: int, block: int) -> int:
    """Return the shortest block, of whole lanes, that cuts a length into no more blocks."""
    return pl.cdiv(pl.cdiv(length, pl.cdiv(length, block)), LANES) * LANES


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Return the float32 product of two blocks over the given axis of each."""
    # On a TPU float32 operands would be rounded to bfloat16 by default.
    precision = "highest" if a.dtype == jnp.float32 else "default"
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _wide(x: jax.Array, width: int) -> jax.Array:
    """Return [rows, width] of a column held as equal lanes, [rows, LANES]."""
    return jnp.tile(x, (1, pl.cdiv(width, LANES)))[:, :width]


def _column(row: jax.Array) -> jax.Array:
    """Return a row [1, length] as a column held as equal lanes, [length, LANES]."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _scores(
    o: Options, a: jax.Array, b: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Return a b^T scaled, capped and masked, and the slope of the cap."""
    scores, slope = _dot(a, b, (1, 1)) * o.scale, None
    if o.softcap is not None:
        squashed = jnp.tanh(scores * (1 / o.softcap))
        scores, slope = o.softcap * squashed, 1.0 - squashed * squashed
    return scores if mask is None else jnp.where(mask, scores, MASKED), slope


def _mask(  # type: ignore[no-untyped-def]
    o: Options, t: Tiling, i, j, numbers, same, shape: tuple[int, int], query_axis: int
) -> jax.Array | None:
    """Return bool of `shape`, where queries lie along `query_axis`, for query block i and key block j."""
    # How far the query lies behind the key: the same for all blocks but for a number.
    ahead = numbers[0] + i * t.bq - j * t.bk
    behind = jax.lax.broadcasted_iota(jnp.int32, shape, query_axis)
    behind -= jax.lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis)
    parts = [] if same is None else [same]
    if o.causal:
        parts.append(behind >= -ahead)
    if t.windowed:
        parts.append(behind < numbers[1] - ahead)
        if not o.causal:
            parts.append(behind > -numbers[1] - ahead)
    return reduce(and_, parts) if parts else None


def _attend(step, mask: Callable[[], jax.Array | None], body) -> None:  # type: ignore[no-untyped-def]
    """Run a step's body on its block, with a mask where it needs one."""
    pl.when(step.every)(lambda: body(None))
    pl.when(step.some & ~step.every)(lambda: body(mask()))


def _forward(  # type: ignore[no-untyped-def]
    o: Options, t: Tiling, layout, words, numbers, x, out, lse, acc, top, total, q_column
):
    step = layout.read(words[pl.program_id(1)])
    h = x.q.shape[-1]

    @pl.when(step.first)
    def _():
        acc[...] = jnp.zeros_like(acc)
        top[...] = jnp.full_like(top, FLOOR)
        total[...] = jnp.zeros_like(total)
        if x.q_ids is not None:
            q_column[...] = _column(x.q_ids[...])

    def mask():  # type: ignore[no-untyped-def]
        same = None if x.q_ids is None else _wide(q_column[...], t.bk) == x.kv_ids[...]
        return _mask(o, t, step.row, step.column, numbers, same, (t.bq, t.bk), 0)

    def body(mask):  # type: ignore[no-untyped-def]
        k, v = x.k[...], x.v[...]
        following, _ = _scores(o, x.q[0], k, mask)
        for n in range(t.heads):
            # The next head's product comes before this head's softmax, so that the compiler has work
            # for the matrix unit meanwhile: for a v6e it packs the step into a quarter fewer bundles.
            scores = following
            if n + 1 < t.heads:
                following, _ = _scores(o, x.q[n + 1], k, mask)
            old_top = top[n]
            new_top = jnp.maximum(old_top, scores.max(1, keepdims=True))
            weights = jnp.exp(scores - _wide(new_top, t.bk))
            shrink = jnp.exp(old_top - new_top)
            # Each lane sums its own columns; the lanes are joined when the row is done.
            sums = sum(weights[:, c : c + LANES] for c in range(0, t.bk, LANES))
            total[n] = total[n] * shrink + sums
            acc[n] = acc[n] * _wide(shrink, h) + _dot(weights.astype(v.dtype), v, (1, 0))
            top[n] = new_top

    _attend(step, mask, body)

    @pl.when(step.last)
    def _():
        for n in range(t.heads):
            sums = total[n].sum(1, keepdims=True)
            seen = sums > 0
            sums = jnp.where(seen, sums, 1.0)
            out[n] = (acc[n] / sums).astype(out.dtype)
            lse[n] = jnp.where(seen, top[n] + jnp.log(sums), MASKED).T[:1]


def _weights_and_slopes(  # type: ignore[no-untyped-def]
    o: Options, a, b, c, d, lse, delta, mask
) -> tuple[jax.Array, jax.Array]:
    """Return the probabilities of a block with scores a b^T, and the gradient to these over `scale`.

    c d^T is the gradient to the probabilities.
    """
    scores, slope = _scores(o, a, b, mask)
    weights = jnp.exp(scores - lse)
    d_scores = weights * (_dot(c, d, (1, 1)) - delta)
    return weights, d_scores if slope is None else d_scores * slope


def _backward_q(  # type: ignore[no-untyped-def]
    o: Options, t: Tiling, layout, words, numbers, x, g, lse, delta, dq, acc, lses, deltas, q_column
):
    step = layout.read(words[pl.program_id(1)])

    @pl.when(step.first)
    def _():
        acc[...] = jnp.zeros_like(acc)
        for n in range(t.heads):
            lses[n], deltas[n] = _column(lse[n]), _column(delta[n])
        if x.q_ids is not None:
            q_column[...] = _column(x.q_ids[...])

    def mask():  # type: ignore[no-untyped-def]
        same = None if x.q_ids is None else _wide(q_column[...], t.bk) == x.kv_ids[...]
        return _mask(o, t, step.row, step.column, numbers, same, (t.bq, t.bk), 0)

    def body(mask):  # type: ignore[no-untyped-def]
        k, v = x.k[...], x.v[...]
        for n in range(t.heads):
            rows = _wide(lses[n], t.bk), _wide(deltas[n], t.bk)
            _, d_scores = _weights_and_slopes(o, x.q[n], k, g[n], v, *rows, mask)
            acc[n] += _dot(d_scores.astype(k.dtype), k, (1, 0))

    _attend(step, mask, body)

    @pl.when(step.last)
    def _():
        dq[...] = (acc[...] * o.scale).astype(dq.dtype)


def _backward_kv(  # type: ignore[no-untyped-def]
    o: Options,
    t: Tiling,
    layout,
    words,
    numbers,
    x,
    g,
    lse,
    delta,
    dk,
    dv,
    dk_acc,
    dv_acc,
    kv_column,
):
    step = layout.read(words[pl.program_id(1)])
    part = pl.program_id(2)

    @pl.when(step.first & (part == 0))
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)
        if x.kv_ids is not None:
            kv_column[...] = _column(x.kv_ids[...])

    def mask():  # type: ignore[no-untyped-def]
        same = None if x.kv_ids is None else _wide(kv_column[...], t.bq) == x.q_ids[...]
        return _mask(o, t, step.column, step.row, numbers, same, (t.bk, t.bq), 1)

    def body(mask):  # type: ignore[no-untyped-def]
        k, v = x.k[...], x.v[...]
        for n in range(t.heads):
            q, g_n = x.q[n], g[n]
            weights, d_scores = _weights_and_slopes(o, k, q, v, g_n, lse[n], delta[n], mask)
            dk_acc[...] += _dot(d_scores.astype(q.dtype), q, (1, 0))
            dv_acc[...] += _dot(weights.astype(g_n.dtype), g_n, (1, 0))

    _attend(step, mask, body)

    @pl.when(step.last & (part == t.parts - 1))
    def _():
        dk[...] = (dk_acc[...] * o.scale).astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)


class Call(NamedTuple):
    """What the three kernels share: the arrays, how they are cut, and the blocks to visit."""

    o: Options
    t: Tiling
    x: Arrays
    numbers: jax.Array  # int32 [2]: how far the first query lies behind the first key; the window
    some: jax.Array  # bool [B, query blocks, key blocks]
    every: jax.Array

    def run(  # type: ignore[no-untyped-def]
        self, kernel, extra, out_kinds: str, out_shape, scratch, by_key: bool = False
    ):
        """Run a kernel over the visible blocks, query block by query block or key block by key block.

        Args:
          kernel: a kernel of this module, without its static arguments.
          extra: an array as q and two float32 [B, N, 1, T], or nothing.
          out_kinds: of each output: `q`, cut as q; `k`, cut as k; `r`, cut as the float32 of a query.
          out_shape, scratch: as `pallas_call` takes them.
        """
        t, x = self.t, self.x
        some, every = (jnp.swapaxes(a, 1, 2) if by_key else a for a in (self.some, self.every))
        layout = Layout.of(some.shape)
        words, count = schedule(some, every)

        def spec(shape, place) -> pl.BlockSpec:  # type: ignore[no-untyped-def]
            def index(head, step, part, words, numbers):  # type: ignore[no-untyped-def]
                b, row, column = layout.read(words[step])[:3]
                if by_key:
                    return place(b, head * t.parts + part, head, column, row)
                return place(b, head, jax.lax.div(head, t.parts), row, column)

            return pl.BlockSpec(shape, index)

        h = x.q.shape[-1]
        kinds = {
            "q": spec((None, t.heads, t.bq, h), lambda b, n, k, i, j: (b, n, i, 0)),
            "k": spec((None, None, t.bk, h), lambda b, n, k, i, j: (b, k, j, 0)),
            "r": spec((None, t.heads, 1, t.bq), lambda b, n, k, i, j: (b, n, 0, i)),
        }
        arrays = Arrays(
            *(kinds[kind] for kind in "qkk"),
            None if x.q_ids is None else spec((None, 1, t.bq), lambda b, n, k, i, j: (b, 0, i)),
            None if x.kv_ids is None else spec((None, 1, t.bk), lambda b, n, k, i, j: (b, 0, j)),
        )
        kv_heads = x.k.shape[1]
        grid = (kv_heads, count, t.parts) if by_key else (kv_heads * t.parts, count, 1)
        return pl.pallas_call(
            partial(kernel, self.o, t, layout),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=grid,
                in_specs=[arrays, *(kinds[kind] for kind in "qrr"[: len(extra)])],
                out_specs=[kinds[kind] for kind in out_kinds],
                scratch_shapes=scratch,
            ),
            out_shape=out_shape,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary", "arbitrary"),
                vmem_limit_bytes=VMEM_BYTES,
            ),
            interpret=interpreted(),
        )(words, self.numbers, x, *extra)


def _filled(x: jax.Array, block: int, value: int = 0) -> jax.Array:
    """Return x with its axis 1 filled up to whole blocks."""
    room = ((0, 0), (0, -x.shape[1] % block)) + ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, room, constant_values=value)


def _heads_first(x: jax.Array, block: int) -> jax.Array:
    return jnp.swapaxes(_filled(x, block), 1, 2)


def _call(o: Options, x: Inputs) -> Call:
    t = Tiling.of(x)
    q_ids, kv_ids = x.q_ids, x.kv_ids
    if q_ids is None and x.k.shape[1] % t.bk:
        # Keys that only fill a block are told from the others by their segment.
        q_ids, kv_ids = (jnp.ones(a.shape[:2], jnp.int32) for a in (x.q, x.k))
    if q_ids is not None and kv_ids is not None:
        q_ids = _filled(jnp.where(q_ids > 0, q_ids, -1), t.bq, -1)[:, None]
        kv_ids = _filled(kv_ids, t.bk)[:, None]
    q, k, v = _heads_first(x.q, t.bq), _heads_first(x.k, t.bk), _heads_first(x.v, t.bk)
    q_offset, kv_offset, window = (
        jnp.zeros((), jnp.int32) if a is None else a for a in (x.q_offset, x.kv_offset, x.window)
    )
    numbers = jnp.stack([q_offset - kv_offset, window])
    return Call(o, t, Arrays(q, k, v, q_ids, kv_ids), numbers, *visible_blocks(o, x, t.bq, t.bk))


def forward(o: Options, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """Return the output and the log-sum-exp; see `flash.flash`."""
    call = _call(o, x)
    t, (b, n, length, h) = call.t, call.x.q.shape
    out, lse = call.run(
        _forward,
        (),
        out_kinds="qr",
        out_shape=[
            jax.ShapeDtypeStruct(call.x.q.shape, x.q.dtype),
            jax.ShapeDtypeStruct((b, n, 1, length), jnp.float32),
        ],
        scratch=[
            pltpu.VMEM((t.heads, t.bq, h), jnp.float32),
            pltpu.VMEM((t.heads, t.bq, LANES), jnp.float32),
            pltpu.VMEM((t.heads, t.bq, LANES), jnp.float32),
            pltpu.VMEM((t.bq, LANES), jnp.int32),
        ],
    )
    rows = x.q.shape[1]
    return jnp.swapaxes(out, 1, 2)[:, :rows], lse[:, :, 0, :rows]


def backward(
    o: Options, x: Inputs, lse: jax.Array, delta: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients to q, k and v; see `flash.flash`."""
    call = _call(o, x)
    t, h = call.t, call.x.q.shape[-1]
    # Where nothing is seen every score is MASKED, and exp(MASKED - 0) is 0.
    lse = jnp.where(lse > FLOOR, lse, 0.0)
    room = ((0, 0), (0, 0), (0, call.x.q.shape[2] - lse.shape[2]))
    extra = (_heads_first(g, t.bq), *(jnp.pad(a, room)[:, :, None] for a in (lse, delta)))
    (dq,) = call.run(
        _backward_q,
        extra,
        out_kinds="q",
        out_shape=[jax.ShapeDtypeStruct(call.x.q.shape, x.q.dtype)],
        scratch=[
            pltpu.VMEM((t.heads, t.bq, h), jnp.float32),
            pltpu.VMEM((t.heads, t.bq, LANES), jnp.float32),
            pltpu.VMEM((t.heads, t.bq, LANES), jnp.float32),
            pltpu.VMEM((t.bq, LANES), jnp.int32),
        ],
    )
    dk, dv = call.run(
        _backward_kv,
        extra,
        out_kinds="kk",
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in call.x[1:3]],
        scratch=[
            pltpu.VMEM((t.bk, h), jnp.float32),
            pltpu.VMEM((t.bk, h), jnp.float32),
            pltpu.VMEM((t.bk, LANES), jnp.int32),
        ],
        by_key=True,
    )
    dq, dk, dv = (jnp.swapaxes(a, 1, 2) for a in (dq, dk, dv))
    return dq[:, : x.q.shape[1]], dk[:, : x.k.shape[1]], dv[:, : x.k.shape[1]]


def refuses(target: Target, o: Options, x: Inputs) -> str | None:
    """Return why the kernels cannot compute this on `target`, or None."""
    dtypes = {a.dtype for a in x[:3]}
    if len(dtypes) > 1 or not dtypes <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}:
        names = ", ".join(str(a.dtype) for a in x[:3])
        return f"q, k and v are {names}, and it takes bfloat16 or float32, all alike"
    return None
