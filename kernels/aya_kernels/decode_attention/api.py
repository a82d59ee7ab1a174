"""The signature of decode_attention, and the choice of its backend."""

import jax

from aya_kernels.backends import choose_backend
from aya_kernels.decode_attention.reference import reference_decode_attention
from aya_kernels.decode_attention.xla import xla_decode_attention

BACKENDS = {"reference": reference_decode_attention, "xla": xla_decode_attention}


def decode_attention(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    lengths: jax.Array,
    *,
    window: int | jax.Array | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Attention of one query a sequence over the filled part of its key and value cache.

    Args:
      q: [B, N, H].
      k_cache, v_cache: [B, S, K, H]; K divides N.
      lengths: int32 [B], filled slots; a row of length 0 gives zeros.
      window: only the last `window` filled slots are seen. May be traced.
      softcap, scale: as in `attention`.
      backend: `reference` or `xla` (the default).

    Returns:
      [B, N, H] in the dtype of q.

    Raises:
      ValueError: shapes that do not fit, or a backend that does not exist.
    """
    if (
        k_cache.shape != v_cache.shape
        or (q.shape[0], q.shape[-1]) != (k_cache.shape[0], k_cache.shape[-1])
        or q.shape[1] % k_cache.shape[2]
        or lengths.shape != q.shape[:1]
    ):
        raise ValueError(
            f"decode_attention: q {q.shape}, k_cache {k_cache.shape}, v_cache {v_cache.shape} and "
            f"lengths {lengths.shape} do not fit"
        )
    run = choose_backend("decode_attention", BACKENDS, backend, "xla")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return run(q, k_cache, v_cache, lengths, window=window, softcap=softcap, scale=scale)
