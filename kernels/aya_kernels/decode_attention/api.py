"""The signature of decode_attention, and the choice of its backend."""

from typing import Any

import jax

from aya_kernels.attention.inputs import Window, int32
from aya_kernels.backends import Backend, choose
from aya_kernels.decode_attention import mosaic_tpu, triton
from aya_kernels.decode_attention.inputs import Inputs, Options
from aya_kernels.decode_attention.placed import on_mesh
from aya_kernels.decode_attention.reference import reference_decode_attention
from aya_kernels.decode_attention.xla import xla_decode_attention
from aya_kernels.placement import Placement

# In order of preference.
BACKENDS = {
    "mosaic_tpu": Backend(mosaic_tpu.mosaic_tpu_decode_attention, "tpu", mosaic_tpu.refuses),
    "triton": Backend(triton.triton_decode_attention, "cuda", triton.refuses, untried=True),
    "xla": Backend(xla_decode_attention),
    "reference": Backend(reference_decode_attention),
}


def decode_attention(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    lengths: jax.Array,
    *,
    page_table: jax.Array | None = None,
    window: Window = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    placement: Placement | None = None,
    backend: str | None = None,
) -> Any:
    """Attention of a sequence's newest tokens over the filled part of its key and value cache.

    Only what is filled is read, and of that only what the window shows. Not differentiable.

    Args:
      q: [B, N, H], a query a sequence, or [B, T, N, H], its T newest ones, causal among themselves:
        the last of them sees all filled slots, the one before all but the last, and so on.
      k_cache, v_cache: [B, S, K, H]; K divides N. The keys and values of q are in it already. What is
        in slots that are not filled may be anything.
      lengths: int32 [B], filled slots; a query that sees none gives zeros.
      page_table: int32 [B, pages]; the caches are then pages, [P, page size, K, H], and slot s of row
        b is slot `s % size` of page `page_table[b, s // size]` (vLLM, arXiv 2309.06180, section 4.1).
        Entries for pages without a filled slot may be anything.
      window: a query sees only the last `window` of its slots. May be traced.
      softcap, scale: as in `attention`.
      return_lse: also return the log-sum-exp of each query's scores, which `combine` needs.
      placement: how the arrays lie on a mesh, if they do. A kernel then runs on each device with the
        rows and heads that it holds (pages are whole on each); plain XLA is left to the compiler.
      backend: by name (`aya_kernels.explain` lists them), or the best for the chip if absent.

    Returns:
      As q, in its dtype; with `return_lse` also float32 [B, N] or [B, N, T], which is -1e30 where a
      query sees nothing.

    Raises:
      ValueError: shapes that do not fit, or a backend that does not exist or cannot run here.
    """
    o, x = request(
        q,
        k_cache,
        v_cache,
        lengths,
        page_table=page_table,
        window=window,
        softcap=softcap,
        scale=scale,
    )
    backends = BACKENDS
    if placement is not None and placement.mesh.size > 1:
        # What is no kernel the compiler can split by itself.
        backends = {
            name: on_mesh(one, placement) if one.platform else one for name, one in BACKENDS.items()
        }
    out, lse = choose("decode_attention", backends, backend, o, x)(o, x)
    if q.ndim == 3:
        out, lse = out[:, 0], lse[..., 0]
    return (out, lse) if return_lse else out


def request(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    lengths: jax.Array,
    *,
    page_table: jax.Array | None = None,
    window: Window = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> tuple[Options, Inputs]:
    """Return what a backend takes, checked; arguments and errors as in `decode_attention`."""
    tables = k_cache.shape[:1] if page_table is None else page_table.shape[:1]
    if (
        q.ndim not in (3, 4)
        or k_cache.ndim != 4
        or k_cache.shape != v_cache.shape
        or q.shape[-1] != k_cache.shape[-1]
        or q.shape[-2] % k_cache.shape[2]
        or not lengths.shape == tables == q.shape[:1]
    ):
        table = "" if page_table is None else f", page_table {page_table.shape}"
        raise ValueError(
            f"decode_attention: q {q.shape}, k_cache {k_cache.shape}, v_cache {v_cache.shape}{table} "
            f"and lengths {lengths.shape} do not fit"
        )
    options = Options(softcap, float(q.shape[-1] ** -0.5 if scale is None else scale))
    if q.ndim == 3:
        q = _one_token(q)
    numbers: Any = [None if a is None else int32(a) for a in (lengths, page_table, window)]
    return options, Inputs(q, k_cache, v_cache, *numbers)


def _one_token(q: Any) -> Any:
    """Return q [B, N, H] as [B, 1, N, H], or its shape."""
    if isinstance(q, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((q.shape[0], 1, *q.shape[1:]), q.dtype)
    return q[:, None]
