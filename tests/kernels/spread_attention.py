"""Run by test_placed: attention on eight virtual devices and on one; prints how far they are apart.

The argument is a JSON list of (devices along three axes, the axes of rows, heads and the sequence,
options, backend).
"""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import aya_kernels

B, T, N, K, H = 2, 24, 4, 1, 16


def results(place, backend, options):
    """Return the output, the log-sum-exp and the gradients of a function of both."""
    rng = np.random.default_rng(0)
    draw = partial(rng.normal, 0, 1)
    q, g = (jnp.asarray(draw((B, T, N, H)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(draw((B, T, K, H)), jnp.float32) for _ in range(2))
    g_lse = jnp.asarray(draw((B, N, T)), jnp.float32)
    ids = jnp.asarray(-np.sort(-rng.integers(0, 4, (B, T)), axis=1), jnp.int32)

    def loss(q, k, v):
        out, lse = aya_kernels.attention(
            q,
            k,
            v,
            segment_ids=(ids, ids),
            return_lse=True,
            placement=place,
            backend=backend,
            **options,
        )
        lse = jnp.where(lse > -1e29, lse, 0.0)
        return (out * g).sum() + (lse * g_lse).sum(), (out, lse)

    grads, kept = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return jax.tree.map(np.asarray, (*kept, *grads))


def main():
    jax.config.update("jax_default_matmul_precision", "highest")
    found, alone = [], {}
    for shape, axes, options, backend in json.loads(sys.argv[1]):
        name = json.dumps(options)
        if name not in alone:
            alone[name] = results(None, "reference", options)
        devices = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
        place = aya_kernels.Placement(Mesh(devices, ("a", "b", "c")), *map(tuple, axes))
        pairs = zip(results(place, backend, options), alone[name], strict=True)
        found.append([float(np.abs(a - b).max()) for a, b in pairs])
    print(json.dumps(found))


main()
