"""Which blocks hold a visible pair, against the mask of all pairs."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aya_kernels.attention.blocks import Lists, visible_blocks
from aya_kernels.attention.inputs import Inputs, Options
from aya_kernels.attention.mask import visible

BQ, BK = 4, 3


@st.composite
def calls(draw):
    t, s = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    ids = st.lists(st.integers(0, 4), min_size=t + s, max_size=t + s)
    packed = draw(st.none() | ids)
    small = st.none() | st.integers(0, 9)
    window, q_offset, kv_offset = (draw(small) for _ in range(3))
    q, k = (jnp.zeros((1, length, 1, 8)) for length in (t, s))
    segments = (None, None)
    if packed is not None:
        segments = tuple(jnp.asarray([part]) for part in (packed[:t], packed[t:]))
    numbers = (None if n is None else jnp.int32(n) for n in (window, q_offset, kv_offset))
    return Options(draw(st.booleans()), None, 1.0), Inputs(q, k, k, *segments, *numbers)


@given(calls())
@settings(max_examples=60, deadline=None)
def test_a_block_is_skipped_only_if_empty_and_unmasked_only_if_full(call):
    options, x = call
    some, every = (np.asarray(a)[0] for a in visible_blocks(options, x, BQ, BK))
    t, s = x.q.shape[1], x.k.shape[1]
    mask = np.broadcast_to(np.asarray(visible(options, x)), (1, t, s))[0]
    for i in range(some.shape[0]):
        for j in range(some.shape[1]):
            block = mask[i * BQ : (i + 1) * BQ, j * BK : (j + 1) * BK]
            assert some[i, j] or not block.any()
            assert not every[i, j] or (block.all() and block.shape == (BQ, BK))


def test_packed_documents_cost_their_own_blocks():
    ids = jnp.repeat(jnp.arange(1, 5), 8)[None]
    q = jnp.zeros((1, 32, 1, 8))
    some, every = visible_blocks(Options(True, None, 1.0), Inputs(q, q, q, ids, ids), 8, 8)
    assert np.array_equal(some[0], np.eye(4, dtype=bool)) and not every.any()


def test_a_window_costs_its_own_blocks():
    q = jnp.zeros((1, 32, 1, 8))
    inputs = Inputs(q, q, q, window=jnp.int32(8))
    some, every = visible_blocks(Options(True, None, 1.0), inputs, 8, 4)
    assert some[0].sum(-1).tolist() == [2, 4, 4, 4] and not every.any()
    some, every = visible_blocks(Options(True, None, 1.0), inputs._replace(window=None), 8, 4)
    assert every[0].sum(-1).tolist() == [0, 2, 4, 6]


def test_lists_name_the_blocks_seen_whole_before_those_with_a_mask():
    some = jnp.asarray([[[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]], bool)
    every = jnp.asarray([[[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]], bool)
    lists = Lists.of(some, every)
    assert lists.whole.tolist() == [[1, 0, 2]] and lists.count.tolist() == [[2, 0, 4]]
    assert lists.index[0, 0, :2].tolist() == [3, 1]
    assert lists.index[0, 2].tolist() == [1, 2, 0, 3]
