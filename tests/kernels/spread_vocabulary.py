"""Run by test_linear_logprob: the vocabulary split over devices against one device, in float32.

The argument is a JSON list of (backend, whether shard_map checks). Prints how far apart they are.
"""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from aya_kernels.linear_logprob import chunks, tokens
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
    tokens.SMALL, tokens.SHORT_BLOCK = 0, 2
    chunks.SHORT_BLOCK, chunks.LONG_BLOCK = 2, 4
    mesh = jax.make_mesh(
        (2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    given = arrays()
    coefficients = np.random.default_rng(1).normal(size=(3, T)).astype(np.float32)
    found = []
    for backend, checked in json.loads(sys.argv[1]):
        call = partial(linear_statistics, entropy=True, argmax=True, backend=backend)
        alone = jax.jit(
            jax.value_and_grad(partial(loss, call, coefficients), argnums=(0, 1, 2), has_aux=True)
        )(*given)

        def local(hidden, weight, scale, targets, mask, call=call):
            out = call(
                hidden, weight, targets, scale=scale, softcap=5.0, mask=mask,
                axis_name=("fsdp", "tensor"),
            )  # fmt: skip
            return jnp.stack([out.logp, out.lse, out.entropy]), out.argmax

        rows, words = P("data"), P(("fsdp", "tensor"))
        spread = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(rows, words, P(), rows, rows),
            out_specs=(P(None, "data"), rows),
            check_vma=checked,
        )

        def whole(hidden, weight, scale, targets, mask, spread=spread):
            floats, argmax = spread(hidden, weight, scale, targets, mask)
            return (coefficients * floats).sum(), (floats, argmax)

        many = jax.jit(jax.value_and_grad(whole, argnums=(0, 1, 2), has_aux=True))(*given)
        far = jax.tree.map(
            lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), alone, many
        )
        found.append(max(jax.tree.leaves(far)))
    print(json.dumps(found))


main()
