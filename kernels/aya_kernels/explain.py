"""Which backend computes a call, and why not another."""

from collections.abc import Callable, Mapping
from typing import Any

from aya_kernels.attention import api as attention
from aya_kernels.backends import Backend, Explanation, explain_choice
from aya_kernels.decode_attention import api as decode_attention
from aya_kernels.linear_logprob import api as linear_logprob

OPERATIONS: dict[str, tuple[Mapping[str, Backend], Callable[..., Any]]] = {
    "attention": (attention.BACKENDS, attention.request),
    "decode_attention": (decode_attention.BACKENDS, decode_attention.request),
    "linear_logprob": (linear_logprob.BACKENDS, linear_logprob.request),
}


def explain(operation: str, *args: Any, backend: str | None = None, **options: Any) -> Explanation:
    """Tell which backend computes a call of an operation here, and why each other one does not.

    Args:
      operation: `attention`, `decode_attention` or `linear_logprob`.
      args, options: as the operation takes them; arrays, or `jax.ShapeDtypeStruct`s in their place.
      backend: as the operation takes it.

    Returns:
      An `Explanation`, which prints as a few lines.

    Raises:
      ValueError: as the operation raises it, or there is no such operation.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"explain: no operation {operation!r}; there are {sorted(OPERATIONS)}")
    backends, request = OPERATIONS[operation]
    return explain_choice(operation, backends, backend, *request(*args, **options))
