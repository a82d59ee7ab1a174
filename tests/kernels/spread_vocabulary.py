"""Run by test_linear_logprob: the vocabulary split over devices against one device, in float32.

The argument is a JSON list of (backend, `checked` or `unchecked` shard_map, `placement` or `columns`). Prints how far
apart values and gradients are.
"""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from aya_kernels import Placement
from aya_kernels.linear_logprob import chunks, slabs, tokens
from aya_kernels.linear_logprob.api import linear_statistics

T, V, D = 12, 64, 8


def arrays():
    rng = np.random.default_rng(0)
    hidden, weight = (rng.normal(size=(n, D)).astype(np.float32) for n in (T, V))
    # Scores that two devices share the greatest of: the first is meant.
    weight[40] = weight[7]
    hidden[3] = 9 * weight[7]
    targets = rng.integers(0, V, T).astype(np.int32)
    mask = rng.random(T) < 0.7
    targets = np.where(mask, targets, -100).astype(np.int32)
    return hidden, weight, jnp.float32(0.7), targets, mask


def loss(call, coefficients, hidden, weight, scale, targets, mask):
    """All results in one number, with a coefficient a token each; and the results."""
    out = call(hidden, weight, targets, scale=scale, softcap=5.0, mask=mask)
    floats = jnp.stack([out.logp, out.lse, out.entropy])
    return (coefficients * floats).sum(), (floats, out.argmax)


def main():
    # Small enough that masked tokens are moved and left out.
    tokens.SMALL, chunks.SHORT_BLOCK, chunks.LONG_BLOCK = 0, 2, 4
    mesh = jax.make_mesh(
        (2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    given = arrays()
    coefficients = np.random.default_rng(1).normal(size=(3, T)).astype(np.float32)

    def value_and_gradients(call):
        return jax.value_and_grad(partial(loss, call, coefficients), (0, 1, 2), has_aux=True)

    alone = jax.jit(
        value_and_gradients(
            partial(linear_statistics, entropy=True, argmax=True, backend="reference")
        )
    )(*given)
    found = []
    for backend, way in json.loads(sys.argv[1]):
        options = {"entropy": True, "argmax": True, "backend": backend}
        call = partial(linear_statistics, **options)
        if way == "placement":
            place = Placement(mesh, batch=("data",), vocabulary=("fsdp", "tensor"))
            spread = in_rows(partial(call, placement=place))
        elif way == "columns":
            # Of the 32 rows of a device, 8 are gathered at a time.
            slabs.SLAB = 8 * D * 4
            batch, words = ("data", "fsdp"), ("tensor",)
            place = Placement(mesh, batch=batch, vocabulary=words, columns=("fsdp",))
            spread = in_rows(partial(call, placement=place))
        else:
            spread = by_hand(partial(call, axis_name=("fsdp", "tensor")), mesh, way == "checked")
        many = jax.jit(value_and_gradients(spread))(*given)
        far = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), alone, many)
        found.append(max(jax.tree.leaves(far)))
    print(json.dumps(found))


def in_rows(call):
    """The tokens in rows, as a placement has them."""

    def spread(hidden, weight, targets, *, mask, **options):
        hidden, targets, mask = (
            a.reshape(4, T // 4, *a.shape[1:]) for a in (hidden, targets, mask)
        )
        out = call(hidden, weight, targets, mask=mask, **options)
        return jax.tree.map(lambda a: a.reshape(T), out)

    return spread


def by_hand(call, mesh, checked):
    """Inside shard_map: tokens split over one axis of the mesh, the vocabulary over the others."""

    def spread(hidden, weight, targets, *, scale, softcap, mask):
        def local(hidden, weight, targets, scale, mask):
            return call(hidden, weight, targets, scale=scale, softcap=softcap, mask=mask)

        rows, words = P("data"), P(("fsdp", "tensor"))
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(rows, words, rows, P(), rows),
            out_specs=rows,
            check_vma=checked,
        )(hidden, weight, targets, scale, mask)

    return spread


main()
