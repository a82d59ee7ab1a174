"""The signature of attention, and the choice of its backend."""

from typing import Any

import jax

from aya_kernels.attention import mosaic_gpu, mosaic_tpu, triton, xla
from aya_kernels.attention.flash import Backward, Forward, flash
from aya_kernels.attention.inputs import Inputs, Offset, Options, SegmentIds, Window, int32
from aya_kernels.attention.placed import on_mesh
from aya_kernels.attention.reference import reference_attention
from aya_kernels.backends import Backend, explain_choice
from aya_kernels.placement import Placement

# Kernels by name, in order of preference: the platform, and the module of the passes.
KERNELS: dict[str, tuple[str, Any]] = {
    "mosaic_tpu": ("tpu", mosaic_tpu),
    "mosaic_gpu": ("cuda", mosaic_gpu),
    "triton": ("cuda", triton),
}

PASSES: dict[str, tuple[Forward, Backward]] = {
    **{name: (module.forward, module.backward) for name, (_, module) in KERNELS.items()},
    "xla": (xla.forward, xla.backward),
}
BACKENDS = {
    **{
        name: Backend(flash(*PASSES[name]), platform, module.refuses, untried=platform == "cuda")
        for name, (platform, module) in KERNELS.items()
    },
    "xla": Backend(xla.xla_attention),
    "reference": Backend(reference_attention),
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
    q_offset: Offset | None = None,
    kv_offset: Offset | None = None,
    return_lse: bool = False,
    placement: Placement | None = None,
    backend: str | None = None,
) -> Any:
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
      q_offset, kv_offset: the place of the first query and of the first key, 0 if absent, where they
        are parts of longer sequences. May be traced.
      return_lse: also return the log-sum-exp of each query's scores, which `combine` needs.
      placement: how the arrays lie on a mesh, if they do. A kernel then runs on each device with the
        rows and heads that it holds, and a sequence in parts by ring attention; plain XLA is left to
        the compiler to split, but for the sequence.
      backend: by name (`aya_kernels.explain` lists them), or the best for the chip if absent.

    Returns:
      [B, T, N, H] in the dtype of q; with `return_lse` also float32 [B, N, T], which is -1e30 where a
      query sees nothing. Both can be differentiated.

    Raises:
      ValueError: shapes that do not fit, or a backend that does not exist or cannot run here.
    """
    o, x = request(
        q,
        k,
        v,
        causal=causal,
        segment_ids=segment_ids,
        window=window,
        softcap=softcap,
        scale=scale,
        q_offset=q_offset,
        kv_offset=kv_offset,
    )
    chosen = explain_choice("attention", BACKENDS, backend, o, x).chosen
    run = BACKENDS[chosen].run
    # What is no kernel the compiler can split by itself, but it would gather a sequence in parts.
    by_hand = BACKENDS[chosen].platform is not None or (
        placement is not None and placement.parts(placement.sequence) > 1
    )
    if by_hand and placement is not None and placement.mesh.size > 1 and chosen in PASSES:
        run = on_mesh(*PASSES[chosen], placement)
    out, lse = run(o, x)
    return (out, lse) if return_lse else out


def request(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = True,
    segment_ids: SegmentIds | None = None,
    window: Window = None,
    softcap: float | None = None,
    scale: float | None = None,
    q_offset: Offset | None = None,
    kv_offset: Offset | None = None,
) -> tuple[Options, Inputs]:
    """Return what a backend takes, checked; arguments and errors as in `attention`."""
    if (
        k.shape != v.shape
        or (q.shape[0], q.shape[-1]) != (k.shape[0], k.shape[-1])
        or q.shape[2] % k.shape[2]
    ):
        raise ValueError(f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit")
    ids: list[Any] = [None, None]
    if segment_ids is not None:
        shapes = tuple(ids.shape for ids in segment_ids)
        if shapes != (q.shape[:2], k.shape[:2]):
            raise ValueError(f"attention: segment_ids {shapes} do not fit q {q.shape}, k {k.shape}")
        ids = [int32(array) for array in segment_ids]
    numbers = [None if a is None else int32(a) for a in (window, q_offset, kv_offset)]
    options = Options(causal, softcap, float(q.shape[-1] ** -0.5 if scale is None else scale))
    return options, Inputs(q, k, v, *ids, *numbers)
