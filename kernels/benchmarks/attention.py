"""Attention, forward and with its gradient: causal, packed and in a window, against other libraries."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import aya_kernels
from aya_kernels.attention.api import BACKENDS
from benchmarks.operands import normal, ours
from benchmarks.table import Question, Work
from benchmarks.timing import Program, compiled

BASELINES = ["cuDNN", "plain XLA"]


class Sizes(NamedTuple):
    """Shapes as in Aya Expanse 8B; `rows` of each length, so that the tokens stay the same."""

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16_384, 32_768)
    tokens: int = 32_768
    heads: int = 32
    kv_heads: int = 8
    size: int = 128
    documents: int = 8  # a packed row
    dtype: Any = jnp.bfloat16

    @property
    def window(self) -> int:
        return min(self.lengths[-1] // 8, 4096)


FULL = Sizes()
TINY = Sizes((64, 128), 128, 4, 2, 32, 4, jnp.float32)
# As much as two cores answer in a few minutes.
CPU = Sizes((1024, 2048), 2048, 8, 2, 64, 8, jnp.float32)


class Mask(NamedTuple):
    """Which pairs are seen: all causal, within documents (ids of one row) or within a window."""

    name: str
    ids: np.ndarray | None = None
    window: int | None = None

    def pairs(self, length: int) -> int:
        """Return how many pairs of a row are seen."""
        if self.ids is not None:
            counts = np.bincount(self.ids)
            return int((counts * (counts + 1) // 2).sum())
        seen = np.arange(1, length + 1)
        return int((seen if self.window is None else np.minimum(seen, self.window)).sum())

    def whole(self, length: int) -> np.ndarray:
        """Return bool [T, S], for libraries that know of nothing better."""
        i, j = np.arange(length)[:, None], np.arange(length)[None]
        seen = j <= i
        if self.ids is not None:
            seen &= self.ids[:, None] == self.ids[None]
        if self.window is not None:
            seen &= i - j < self.window
        return seen


def masks(sizes: Sizes, length: int) -> Iterator[Mask]:
    """Return the masks of a length."""
    yield Mask("causal")
    # Documents of unlike lengths, as they come: the ends are drawn once and for all.
    ends = np.sort(np.random.default_rng(0).choice(length - 1, sizes.documents - 1, replace=False))
    yield Mask("packed", np.searchsorted(ends + 1, np.arange(length), side="right") + 1)
    if sizes.window < length:
        yield Mask(f"window {sizes.window}", None, sizes.window)


def questions(sizes: Sizes) -> Iterator[Question]:
    """Return what is asked: every length, mask and pass."""
    for length in sizes.lengths:
        for mask in masks(sizes, length):
            for backward in (False, True):
                yield question(sizes, length, mask, backward)


def question(sizes: Sizes, length: int, mask: Mask, backward: bool) -> Question:
    """Return what is asked of one length, mask and pass."""
    rows = max(sizes.tokens // length, 1)
    # Two products of H operations' pairs a head forward, five more backward.
    operations = 4 * sizes.size * sizes.heads * rows * mask.pairs(length) * (3.5 if backward else 1)
    arrays = [
        normal(seed, rows, length, heads, sizes.size, dtype=sizes.dtype)
        for seed, heads in enumerate((sizes.heads, sizes.kv_heads, sizes.kv_heads))
    ]

    # Segment ids and masks are arguments, so that no compiler works anything out beforehand.
    def made(call: Callable[..., Any], **masking: jax.Array) -> Program:
        return compiled(with_gradient(call) if backward else call, *arrays, **masking)

    def ours_by(name: str) -> Program:
        def call(q: Any, k: Any, v: Any, ids: Any = None) -> Any:
            pair = None if ids is None else (ids, ids)
            return aya_kernels.attention(
                q, k, v, segment_ids=pair, window=mask.window, backend=name
            )

        if mask.ids is None:
            return made(call)
        return made(call, ids=jnp.asarray(np.tile(mask.ids, (rows, 1)), jnp.int32))

    def like_jax(function: Callable[..., Any], **options: Any) -> Program:
        if mask.window is not None:
            options["local_window_size"] = (mask.window - 1, 0)
        call = partial(function, is_causal=True, **options)
        if mask.ids is None:
            return made(call)
        return made(call, mask=jnp.asarray(mask.whole(length))[None, None])

    def tokamax() -> Program:
        from tokamax import dot_product_attention

        return like_jax(dot_product_attention)

    makers: dict[str, Callable[[], Program]] = {
        name: partial(ours_by, name) for name in ours(BACKENDS)
    }
    theirs, name = ("cudnn", "cuDNN") if on_a_card() else ("xla", "plain XLA")
    makers[name] = partial(like_jax, jax.nn.dot_product_attention, implementation=theirs)
    makers["torch SDPA"] = partial(torch_program, sizes, rows, length, mask, backward)
    makers["tokamax"] = tokamax
    passes = "forward and backward" if backward else "forward"
    return Question(f"{mask.name}, {rows} x {length}, {passes}", Work(operations), makers)


def on_a_card() -> bool:
    """Return whether the device is a GPU."""
    return jax.devices()[0].platform == "gpu"


def with_gradient(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function to the output and the gradients to q, k and v."""

    def both(q: Any, k: Any, v: Any, **masking: Any) -> Any:
        out, pull = jax.vjp(partial(call, **masking), q, k, v)
        return out, pull(out)

    return both


def torch_program(sizes: Sizes, rows: int, length: int, mask: Mask, backward: bool) -> Program:
    """Return torch's scaled_dot_product_attention, which chooses its own kernel.

    Raises:
      RuntimeError: it has no card (and ImportError without torch).
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    shapes = [(rows, heads, length, sizes.size) for heads in (sizes.heads, sizes.kv_heads)]
    dtype = torch.bfloat16 if sizes.dtype == jnp.bfloat16 else torch.float32
    q, k, v = (
        torch.randn(shape, device="cuda", dtype=dtype, requires_grad=backward)
        for shape in (shapes[0], shapes[1], shapes[1])
    )
    options: dict[str, Any] = {"is_causal": True}
    if mask.name != "causal":
        options = {"attn_mask": torch.from_numpy(mask.whole(length)).cuda()}
    call = partial(torch.nn.functional.scaled_dot_product_attention, enable_gqa=True, **options)

    def run() -> Any:
        if not backward:
            return call(q, k, v)
        out = call(q, k, v)
        return torch.autograd.grad(out, (q, k, v), out.detach())

    return Program(run, lambda _: torch.cuda.synchronize())
