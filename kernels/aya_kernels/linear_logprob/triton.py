"""The sums of the linear log-probability as a Pallas kernel for CUDA cards through Triton.

A program has a block of tokens and a part of the vocabulary. It makes the scores a tile at a time in
registers, as any matrix product does, and takes from each tile what its tokens need: the tile is never
written. The sums of the parts are joined outside.

Shapes: T tokens, V rows of the vocabulary, D hidden size, P parts of the vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from aya_kernels.backends import Target, interpreted
from aya_kernels.linear_logprob.inputs import MASKED, Inputs, Options, Sums

DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
# Of a tile, tokens and rows of the vocabulary alike: 64 registers a thread for eight warps.
LONGEST = 128
# The tensor cores take 16 rows and columns at least.
LEAST = 16
# Bytes of D that a step takes of each token and row: 32 KiB for both sides of a tile. Three steps are
# in shared memory at once: 96 KiB, as consumer cards have 99.
STEP_BYTES = 128
STAGES = 3
# Blocks of tokens that run side by side on the same rows of the vocabulary. So many rows of hidden,
# 16 MiB for D 4096 in 16 bits, stay in the second-level cache while the weight passes by once for them.
TOGETHER = 16
# Enough that the last round of a card's 100 to 150 processors is a small part of the whole.
PROGRAMS = 2048


class Cut(NamedTuple):
    """How the work is cut; what a tile has are powers of two, as Triton wants them."""

    tokens: int  # of a tile
    rows: int  # of a tile
    columns: int  # of D, a step
    tiles: int  # of a part
    blocks: int  # of tokens
    parts: int  # P

    @classmethod
    def of(cls, x: Inputs) -> "Cut":
        count, d = x.hidden.shape
        vocabulary = x.weight.shape[0]
        tokens, rows, columns = (
            max(min(pl.next_power_of_2(length), most), LEAST)
            for length, most in (
                (count, LONGEST),
                (vocabulary, LONGEST),
                (d, STEP_BYTES // x.hidden.dtype.itemsize),
            )
        )
        blocks, tiles = pl.cdiv(count, tokens), pl.cdiv(vocabulary, rows)
        of_a_part = pl.cdiv(tiles, pl.cdiv(PROGRAMS, blocks))
        return cls(tokens, rows, columns, of_a_part, blocks, pl.cdiv(tiles, of_a_part))


def refuses(target: Target, o: Options, x: Inputs) -> str | None:
    """Return why the kernel cannot compute this there, or None."""
    dtype = x.hidden.dtype
    if target.capability is not None and target.capability < 8.0:
        return f"it needs compute capability 8.0 and this is {target.capability}"
    if dtype != x.weight.dtype or dtype not in DTYPES:
        return (
            "hidden and weight must both be bfloat16, float16 or float32, not "
            f"{dtype} and {x.weight.dtype}"
        )
    return None


def _load(ref: Any, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return a part of a matrix, zeros beyond its ends."""
    inside = jnp.ones((rows.size, columns.size), bool)
    inside &= (rows < ref.shape[0])[:, None] & (columns < ref.shape[1])[None]
    found: jax.Array = plgpu.load(ref.at[rows[:, None], columns[None]], mask=inside, other=0.0)
    return found


def _kernel(  # type: ignore[no-untyped-def]
    o: Options, cut: Cut, scale_ref, count_ref, hidden_ref, targets_ref, weight_ref, *sums_refs
) -> None:
    block = pl.program_id(2) * pl.num_programs(0) + pl.program_id(0)
    part = pl.program_id(1)
    tokens = block * cut.tokens + jnp.arange(cut.tokens)
    (length, d), vocabulary = hidden_ref.shape, weight_ref.shape[0]
    scale = scale_ref[0]
    targets = plgpu.load(targets_ref.at[tokens], mask=tokens < length, other=-1)

    def tile(number: Any, sums: Sums) -> Sums:
        rows = number * cut.rows + jnp.arange(cut.rows)

        def step(i: Any, products: jax.Array) -> jax.Array:
            columns = i * cut.columns + jnp.arange(cut.columns)
            hidden, weight = (
                _load(hidden_ref, tokens, columns),
                _load(weight_ref, rows, columns),
            )
            # float32 follows jax_default_matmul_precision; 16 bits have one precision only.
            precision = None if hidden.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
            return products + jax.lax.dot_general(
                hidden,
                weight,
                (((1,), (1,)), ((), ())),
                precision=precision,
                preferred_element_type=jnp.float32,
            )

        zeros = jnp.zeros((cut.tokens, cut.rows), jnp.float32)
        scores = jax.lax.fori_loop(0, pl.cdiv(d, cut.columns), step, zeros)
        if o.softcap is None:
            scores = scores * scale
        else:
            scores = o.softcap * jnp.tanh(scores * (scale / o.softcap))
        held = (rows < vocabulary)[None]
        hit = held & (rows[None] == targets[:, None])
        scores = jnp.where(held, scores, MASKED)
        tile_top = scores.max(1)
        top = jnp.maximum(sums.top, tile_top)
        fall = sums.top - top
        shrink = jnp.exp(fall)
        below = scores - top[:, None]
        weights = jnp.exp(below)
        moment, best = sums.moment, sums.best
        if moment is not None:
            moment = (moment + fall * sums.total) * shrink + (weights * below).sum(1)
        if best is not None:
            leader = jnp.where(scores == tile_top[:, None], rows[None], vocabulary).min(1)
            best = jnp.where(tile_top > sums.top, leader, best)
        return Sums(
            top,
            sums.total * shrink + weights.sum(1),
            sums.picked + jnp.where(hit, scores, 0.0).sum(1),
            moment,
            best,
        )

    zeros = jnp.zeros(cut.tokens, jnp.float32)
    nothing = Sums(
        zeros + MASKED,
        zeros,
        zeros,
        zeros if o.entropy else None,
        jnp.zeros(cut.tokens, jnp.int32) if o.argmax else None,
    )
    first = part * cut.tiles
    end = jnp.minimum(first + cut.tiles, pl.cdiv(vocabulary, cut.rows))
    # A block of tokens none of which counts has no tile.
    end = jnp.where(block * cut.tokens < count_ref[0], end, first)
    sums = jax.lax.fori_loop(first, end, tile, nothing)
    for ref, value in zip(sums_refs, jax.tree.leaves(sums), strict=True):
        plgpu.store(ref.at[part, tokens], value, mask=tokens < length)


def forward(o: Options, x: Inputs) -> Sums:
    """Return the sums of each token; see `streamed.streamed`."""
    tokens = x.hidden.shape[0]
    cut = Cut.of(x)
    together = min(cut.blocks, TOGETHER)

    def parts(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            (cut.parts, tokens), dtype, manual_axis_type=jax.typeof(x.hidden).manual_axis_type
        )

    number = parts(jnp.float32)
    asked = Sums(
        number,
        number,
        number,
        number if o.entropy else None,
        parts(jnp.int32) if o.argmax else None,
    )
    leaves, tree = jax.tree.flatten(asked)
    found = pl.pallas_call(
        partial(_kernel, o, cut),
        grid=(together, cut.parts, pl.cdiv(cut.blocks, together)),
        out_shape=leaves,
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=STAGES),
        interpret=interpreted(),
    )(
        x.scale.reshape(1),
        (jnp.int32(tokens) if x.count is None else x.count).reshape(1),
        x.hidden,
        x.targets,
        x.weight,
    )
    return _joined(jax.tree.unflatten(tree, found))


def _joined(parts: Sums) -> Sums:
    """Return the sums of each token over the parts of the vocabulary, from those of each, [P, T]."""
    top = parts.top.max(0)
    fall = parts.top - top
    shrink = jnp.exp(fall)
    moment, best = parts.moment, parts.best
    if moment is not None:
        moment = ((moment + fall * parts.total) * shrink).sum(0)
    if best is not None:
        # The first part of those with the largest score has the first row of equals.
        leader = parts.top.argmax(0)[None]
        best = jnp.take_along_axis(best, leader, axis=0)[0]
    return Sums(top, (parts.total * shrink).sum(0), parts.picked.sum(0), moment, best)
