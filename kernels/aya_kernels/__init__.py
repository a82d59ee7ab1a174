"""Attention and output-layer operations for JAX, usable without aya_jax.

One folder an operation: `reference.py` defines it in a few lines, the other modules are backends of
the same signature, and `api.py` chooses one.
"""

from aya_kernels.attention.api import attention
from aya_kernels.backends import Target, current_target, target
from aya_kernels.decode_attention.api import decode_attention
from aya_kernels.explain import explain
from aya_kernels.linear_logprob.api import linear_logprob, linear_statistics
from aya_kernels.placement import Placement

__all__ = [
    "Placement",
    "Target",
    "attention",
    "current_target",
    "decode_attention",
    "explain",
    "linear_logprob",
    "linear_statistics",
    "target",
]
