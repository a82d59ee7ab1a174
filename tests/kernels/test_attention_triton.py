"""Attention through Triton: what it never reads, how it is cut and what it refuses."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_kernels.attention import triton
from aya_kernels.attention.inputs import MASKED, Inputs, Options
from aya_kernels.backends import Target

# What a program may have of shared memory, in bytes: consumer cards have least.
SHARED = 99 << 10


def both(o: Options, x: Inputs, g: Any) -> Any:
    out, lse = triton.forward(o, x)
    delta = jnp.swapaxes((g * out).sum(-1), 1, 2)
    return out, lse, *triton.backward(o, x, lse, delta, g)


@pytest.mark.slow
def test_blocks_that_nothing_sees_are_never_read() -> None:
    # Not a number times a weight of zero is none either, so that a masked product would show.
    rng = np.random.default_rng(0)
    arrays: Any = rng.normal(size=(4, 1, 256, 2, 16)).astype(np.float32)
    q, k, v, g = arrays
    ids: Any = np.repeat(np.array([[1, 0, 2, 0]], np.int32), 64, axis=1)
    empty = ids == 0
    bad_k, bad_v = (jnp.where(empty[..., None, None], jnp.nan, a) for a in (k, v))
    o = Options(True, None, 0.25)
    run = jax.jit(partial(both, o))
    want = run(Inputs(q, k, v, ids, ids), np.where(empty[..., None, None], 0, g))
    got = run(Inputs(q, bad_k, bad_v, ids, ids), np.where(empty[..., None, None], 0, g))
    for found, right in zip(got, want, strict=True):
        np.testing.assert_array_equal(found, right)
    assert (got[1][:, :, empty[0]] == MASKED).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("h", [16, 64, 80, 128, 256])
def test_tiles_fit_into_the_shared_memory_of_every_card(h: int, dtype: Any) -> None:
    array: Any = partial(jax.ShapeDtypeStruct, dtype=dtype)
    x = Inputs(array((1, 8192, 32, h)), *[array((1, 8192, 8, h))] * 2)
    # Two blocks pass by, each with its next; of what is kept one tile going forward, two coming back.
    for way, tiles in (("forward", 1), ("backward", 2)):
        cut = triton.Cut.of(way, x, 8192, 8192)
        row = pow(2, (h - 1).bit_length()) * jnp.dtype(dtype).itemsize
        assert (4 * cut.passing + tiles * cut.kept) * row <= SHARED
        assert min(cut.kept, cut.passing) >= 16


def test_what_it_refuses() -> None:
    array: Any = jax.ShapeDtypeStruct
    x = Inputs(*[array((1, 64, 2, 64), jnp.bfloat16)] * 3)
    o, card = Options(True, None, 0.125), Target("cuda", "NVIDIA GeForce RTX 3090", 8.6)
    assert triton.refuses(card, o, x) is None

    def why(o: Options = o, x: Inputs = x, capability: float = 8.6) -> str:
        return str(triton.refuses(card._replace(capability=capability), o, x))

    assert "compute capability 8.0" in why(capability=7.5)
    assert "float16" in why(x=x._replace(q=array((1, 64, 2, 64), jnp.float32)))
    assert "at most 256" in why(x=Inputs(*[array((1, 64, 2, 288), jnp.bfloat16)] * 3))
    assert "scale above 0" in why(o=o._replace(scale=-1.0))
