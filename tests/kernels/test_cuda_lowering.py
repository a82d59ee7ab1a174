"""Every GPU kernel, option and pass lowered for CUDA cards with none at hand."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

import aya_kernels
from aya_kernels.attention.api import BACKENDS as ATTENTION
from aya_kernels.decode_attention.api import BACKENDS as DECODE
from aya_kernels.linear_logprob.api import BACKENDS as LOGPROB

CARDS = {
    "H100": ("cuda", "NVIDIA H100 80GB HBM3", 9.0),
    "A100": ("cuda", "NVIDIA A100-SXM4-80GB", 8.0),
}
# How a kernel looks in a lowered program.
CALLS = {"mosaic_gpu": "mosaic_gpu", "triton": "triton"}


def on_cards(backends: Any) -> list[Any]:
    """Return the pairs of a card and a backend written for CUDA; Mosaic GPU is for Hopper alone."""
    names = [name for name, backend in backends.items() if backend.platform == "cuda"]
    return [(c, name) for c in CARDS for name in names if (c, name) != ("A100", "mosaic_gpu")]


def lowered(card: str, run: Any, **shapes: Any) -> str:
    # From jax 0.12 on Triton's lowering asks the mesh what card it is for.
    device = AbstractDevice(CARDS[card][1], 132, "gpu")
    mesh = AbstractMesh((1,), ("x",), abstract_device=device)
    with aya_kernels.target(*CARDS[card]), use_abstract_mesh(mesh):
        return jax.jit(run).trace(**shapes).lower(lowering_platforms=("cuda",)).as_text()


def kernels(text: str, backend: str) -> int:
    calls = [line for line in text.splitlines() if "custom_call" in line]
    return sum(CALLS[backend] in line for line in calls)


def array(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


ids = partial(array, dtype=jnp.int32)
# Options; then heads of queries and keys, their size, queries and keys.
PROGRAMS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "8B, causal": ({}, (32, 8, 128, 8192, 8192)),
    "8B, every option": (
        {"softcap": 50.0, "packed": True, "window": True, "offsets": True, "scale": 0.1},
        (32, 8, 128, 8192, 8192),
    ),
    "both ways, window, odd lengths": ({"causal": False, "window": True}, (16, 16, 64, 1000, 3001)),
    "heads of 256, one key head": ({"packed": True}, (8, 1, 256, 2048, 2048)),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("card", "backend"), on_cards(ATTENTION))
def test_attention_with_its_gradient(card: str, backend: str, name: str) -> None:
    options, (n, k, h, t, s) = PROGRAMS[name]
    options = dict(options)
    shapes = {"q": array(1, t, n, h), "k": array(1, s, k, h), "v": array(1, s, k, h)}
    if options.pop("packed", False):
        shapes |= {"q_ids": ids(1, t), "kv_ids": ids(1, s)}
    for option, names in {"window": ("window",), "offsets": ("q_offset", "kv_offset")}.items():
        if options.pop(option, False):
            shapes |= {name: ids() for name in names}

    def run(q: Any, k: Any, v: Any, q_ids: Any = None, kv_ids: Any = None, **numbers: Any) -> Any:
        pair = None if q_ids is None else (q_ids, kv_ids)
        call = partial(
            aya_kernels.attention, segment_ids=pair, return_lse=True, backend=backend, **numbers
        )
        found, pull = jax.vjp(partial(call, **options), q, k, v)
        return found, pull(found)

    assert kernels(lowered(card, run, **shapes), backend) == 3


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize(("card", "backend"), on_cards(DECODE))
def test_decode_attention(card: str, backend: str, paged: bool) -> None:
    shapes = {"q": array(64, 32, 128), "lengths": ids(64)}
    cache, options = (64, 8192, 8, 128), {}
    if paged:
        # Everything at once: several newest tokens, a window, a cap, a scale.
        cache, options = (32_768, 16, 8, 128), {"softcap": 30.0, "scale": 0.1}
        shapes |= {"q": array(64, 4, 32, 128), "page_table": ids(64, 512), "window": ids()}
    shapes |= {"k_cache": array(*cache), "v_cache": array(*cache)}
    run = partial(aya_kernels.decode_attention, return_lse=True, backend=backend, **options)
    assert kernels(lowered(card, run, **shapes), backend) >= 1


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(("card", "backend"), on_cards(LOGPROB))
def test_linear_logprob_with_its_gradient(card: str, backend: str, everything: bool) -> None:
    shapes = {
        "hidden": array(8192, 4096),
        "weight": array(256_000, 4096),
        "targets": ids(8192),
        "scale": array(dtype=jnp.float32),
    }
    options: dict[str, Any] = {}
    if everything:
        shapes["mask"] = array(8192, dtype=jnp.bool_)
        options = {"softcap": 30.0, "entropy": True, "argmax": True}

    def run(hidden: Any, weight: Any, scale: Any, **rest: Any) -> Any:
        def call(hidden: Any, weight: Any, scale: Any) -> Any:
            found = aya_kernels.linear_statistics(
                hidden, weight, scale=scale, backend=backend, **rest, **options
            )
            return (found.logp, found.lse, found.entropy), found.argmax

        found, pull, best = jax.vjp(call, hidden, weight, scale, has_aux=True)
        return found, best, pull(found)

    assert kernels(lowered(card, run, **shapes), backend) >= 1


def test_every_operation_has_a_kernel_for_cards() -> None:
    assert on_cards(ATTENTION) and on_cards(DECODE)
