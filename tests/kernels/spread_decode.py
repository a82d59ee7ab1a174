"""Run by test_decode_attention: four virtual devices and one; prints how far they are apart.

The argument is a JSON list of (backend, whether the cache is in pages, window).
"""

import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh

import aya_kernels


def main():
    jax.config.update("jax_default_matmul_precision", "highest")
    rng = np.random.default_rng(0)
    q = rng.normal(size=(4, 2, 4, 16)).astype(np.float32)
    caches = [rng.normal(size=(4, 20, 2, 16)).astype(np.float32) for _ in range(2)]
    pages = [cache.reshape(20, 4, 2, 16) for cache in caches]
    lengths = np.array([0, 1, 5, 20], np.int32)
    table = rng.permutation(20).reshape(4, 5).astype(np.int32)
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2), ("a", "b"))
    place = aya_kernels.Placement(mesh, batch=("a",), heads=("b",))
    found = []
    for backend, paged, window in json.loads(sys.argv[1]):

        def call(place, backend, paged=paged, window=window):
            return aya_kernels.decode_attention(
                q,
                *(pages if paged else caches),
                lengths,
                page_table=table if paged else None,
                window=window,
                return_lse=True,
                placement=place,
                backend=backend,
            )

        alone = call(None, "reference")
        pairs = zip(jax.jit(lambda: call(place, backend))(), alone, strict=True)  # noqa: B023
        found.append([float(np.abs(a - b).max()) for a, b in pairs])
    print(json.dumps(found))


main()
