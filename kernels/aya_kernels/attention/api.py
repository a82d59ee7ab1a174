"""The signature of attention, and the choice of its backend."""

import jax

from aya_kernels.attention.mask import SegmentIds, Window
from aya_kernels.attention.pallas import pallas_attention
from aya_kernels.attention.reference import reference_attention
from aya_kernels.attention.xla import xla_attention
from aya_kernels.backends import choose_backend

BACKENDS = {
    "reference": reference_attention,
    "xla": xla_attention,
    "pallas": pallas_attention,
}


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = True,
    segment_ids: SegmentIds | None = None,
    window: Window = None,
    softcap: float | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Grouped-query attention (arXiv 1706.03762, equation 1; grouped: arXiv 2305.13245).

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H]; K divides N.
      causal: a query sees only keys at its own place and before it; places count from 0 in both.
      segment_ids: int32 [B, T] and [B, S]; queries see keys of their own segment. 0 is padding: it
        attends to nothing, nothing attends to it, its output and gradients are zero.
      window: a query at i sees only keys j with i - window < j (Mistral), and j < i + window where
        not causal. May be traced, so that scanned layers can differ.
      softcap: `softcap * tanh(score / softcap)` before the mask (Gemma 2).
      scale: of the scores; `H ** -0.5` if absent.
      backend: `reference`, `xla` or `pallas` (TPU, and slowly on a CPU: interpreted); if absent
        Pallas on a TPU and XLA elsewhere.

    Returns:
      [B, T, N, H] in the dtype of q.

    Raises:
      ValueError: shapes that do not fit, or a backend that does not exist or cannot run here.
    """
    if (
        k.shape != v.shape
        or (q.shape[0], q.shape[-1]) != (k.shape[0], k.shape[-1])
        or q.shape[2] % k.shape[2]
    ):
        raise ValueError(f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit")
    if segment_ids is not None:
        shapes = tuple(ids.shape for ids in segment_ids)
        if shapes != (q.shape[:2], k.shape[:2]):
            raise ValueError(f"attention: segment_ids {shapes} do not fit q {q.shape}, k {k.shape}")
    default = "pallas" if jax.default_backend() == "tpu" else "xla"
    run = choose_backend("attention", BACKENDS, backend, default)
    return run(
        q,
        k,
        v,
        causal=causal,
        segment_ids=segment_ids,
        window=window,
        softcap=softcap,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
    )
