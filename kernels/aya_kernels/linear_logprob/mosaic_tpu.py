"""The sums of the linear log-probability as a Pallas kernel for Mosaic TPU.

A tile is some rows of the vocabulary times a block of tokens, [bv, bt]; a block of tokens keeps its
running sums while the vocabulary goes by. With tokens last, what belongs to a token is a row [1, bt],
which Mosaic stores densely and adds to a tile as it is, and sums over the vocabulary go down sublanes.

The block of hidden stays in VMEM while the weight streams past it, once for each block of tokens: bt
operations a byte in bfloat16, so blocks are as long as VMEM allows. Each tile contracts over D whole.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from aya_kernels.backends import Target, interpreted
from aya_kernels.linear_logprob.inputs import MASKED, Inputs, Options, Sums

BLOCKS = (1024, 512, 256, 128)
# At most so many bytes of hidden and of weight in a block. Both are held twice, one being fetched; in
# float32 they are counted twice as long, since their precise product splits them into three bfloat16.
HIDDEN_BYTES = 16 << 20
WEIGHT_BYTES = 4 << 20
# Room for the float32 tiles that the compiler holds at once, and for what else it needs.
TILES = 8
SPARE_BYTES = 4 << 20


def _block(length: int, row_bytes: int, most_bytes: int) -> int:
    """Return the longest block whose rows fit; not the double of what holds all of them."""
    fits = [b for b in BLOCKS if b * row_bytes <= most_bytes and b < 2 * length]
    return fits[0] if fits else BLOCKS[-1]


def _row_bytes(x: Inputs) -> int:
    return x.hidden.shape[-1] * (2 if x.hidden.dtype == jnp.bfloat16 else 8)


def refuses(target: Target, o: Options, x: Inputs) -> str | None:
    """Return why the kernel cannot compute this there, or None."""
    dtype = x.hidden.dtype
    if dtype != x.weight.dtype or dtype not in (jnp.bfloat16, jnp.float32):
        return (
            f"hidden and weight must both be bfloat16 or float32, not {dtype} and {x.weight.dtype}"
        )
    if BLOCKS[-1] * _row_bytes(x) > HIDDEN_BYTES:
        return f"a block of {BLOCKS[-1]} tokens of {x.hidden.shape[-1]} does not fit into VMEM"
    return None


def _kernel(  # type: ignore[no-untyped-def]
    o: Options, vocabulary: int, scale_ref, hidden_ref, targets_ref, weight_ref, *sums_refs
):
    bv, bt = weight_ref.shape[0], hidden_ref.shape[0]
    j = pl.program_id(1)
    names = [name for name, asked in _asked(o).items() if asked]
    sums = dict(zip(names, sums_refs, strict=True))

    @pl.when(j == 0)
    def _():
        for name, ref in sums.items():
            ref[...] = jnp.full_like(ref, MASKED if name == "top" else 0)

    hidden, weight = hidden_ref[...], weight_ref[...]
    # float32 follows jax_default_matmul_precision; bfloat16 has one precision only.
    precision = None if hidden.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    scores = jax.lax.dot_general(
        weight,
        hidden,
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    scale = scale_ref[0, 0]
    if o.softcap is None:
        scores = scores * scale
    else:
        scores = o.softcap * jnp.tanh(scores * (scale / o.softcap))
    rows = j * bv + jax.lax.broadcasted_iota(jnp.int32, (bv, bt), 0)
    there = rows < vocabulary
    scores = jnp.where(there, scores, MASKED)
    tile_top = scores.max(0, keepdims=True)
    old_top = sums["top"][...]
    top = jnp.maximum(old_top, tile_top)
    shrink = jnp.exp(old_top - top)
    below = scores - top
    weights = jnp.exp(below)
    total = sums["total"][...]
    sums["total"][...] = total * shrink + weights.sum(0, keepdims=True)
    hit = there & (rows == targets_ref[...])
    sums["picked"][...] += jnp.where(hit, scores, 0.0).sum(0, keepdims=True)
    if o.entropy:
        moment = (sums["moment"][...] + (old_top - top) * total) * shrink
        sums["moment"][...] = moment + (weights * below).sum(0, keepdims=True)
    if o.argmax:
        leader = jnp.where(scores == tile_top, rows, vocabulary).min(0, keepdims=True)
        sums["best"][...] = jnp.where(tile_top > old_top, leader, sums["best"][...])
    sums["top"][...] = top


def _asked(o: Options) -> dict[str, bool]:
    return {"top": True, "total": True, "picked": True, "moment": o.entropy, "best": o.argmax}


def forward(o: Options, x: Inputs) -> Sums:
    """Return the sums of each token; see `streamed.streamed`."""
    tokens, d = x.hidden.shape
    vocabulary = x.weight.shape[0]
    row_bytes = _row_bytes(x)
    bt = _block(tokens, row_bytes, HIDDEN_BYTES)
    bv = _block(vocabulary, row_bytes, WEIGHT_BYTES)
    # At least one block, as a kernel with an empty grid is nothing that compilers are tested on.
    blocks: Any = pl.cdiv(tokens, bt)
    if x.count is not None:
        blocks = jnp.maximum(jax.lax.div(x.count + (bt - 1), bt), 1)
    row = pl.BlockSpec((1, bt), lambda i, j: (0, i))
    names = [name for name, asked in _asked(o).items() if asked]
    found = pl.pallas_call(
        partial(_kernel, o, vocabulary),
        grid=(blocks, pl.cdiv(vocabulary, bv)),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((bt, d), lambda i, j: (i, 0)),
            row,
            pl.BlockSpec((bv, d), lambda i, j: (j, 0)),
        ],
        out_specs=[row] * len(names),
        out_shape=[
            jax.ShapeDtypeStruct(
                (1, tokens),
                jnp.int32 if name == "best" else jnp.float32,
                manual_axis_type=jax.typeof(x.hidden).manual_axis_type,
            )
            for name in names
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=2 * (bt + bv) * row_bytes + TILES * bt * bv * 4 + SPARE_BYTES,
        ),
        interpret=interpreted(),
    )(x.scale.reshape(1, 1), x.hidden, x.targets[None], x.weight)
    sums = dict.fromkeys(Sums._fields) | dict(zip(names, (a[0] for a in found), strict=True))
    return Sums(**sums)
