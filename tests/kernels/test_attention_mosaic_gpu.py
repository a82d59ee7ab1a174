"""The kernels for Hopper: interpreted against NumPy float64, and lowered for CUDA with no GPU."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from aya_kernels.attention import mosaic_gpu
from aya_kernels.attention.flash import flash
from aya_kernels.attention.inputs import MASKED, Inputs, Options
from aya_kernels.backends import Target, target

attention = flash(mosaic_gpu.forward, mosaic_gpu.backward)


@pytest.fixture(autouse=True, scope="module")
def watchful(compiled_once: None) -> Iterator[None]:
    """An interpreter that looks for races."""
    with pytest.MonkeyPatch.context() as patch:
        params = partial(mosaic_gpu.InterpretGPUParams, detect_races=True)
        patch.setattr(mosaic_gpu, "InterpretGPUParams", params)
        yield


class Case(NamedTuple):
    """Sizes and options of a call; `ids` the segment ids of queries and of keys, from row 0 on."""

    t: int
    s: int
    h: int
    b: int = 1
    n: int = 2
    k: int = 1
    causal: bool = True
    softcap: float | None = None
    window: int | None = None
    offsets: tuple[int, int] | None = None
    ids: Any = None
    dtype: Any = jnp.bfloat16


def documents(*lengths: int) -> list[int]:
    """Return the segment ids of documents of these lengths; a length below 0 is padding."""
    return [i + 1 if n > 0 else 0 for i, n in enumerate(lengths) for _ in range(abs(n))]


CASES = {
    # Blocks seen whole, in part and not at all; a tile that sees three, one more than a ring has slots.
    "packed": Case(420, 420, 64, window=270, ids=[documents(128, 272, -20)] * 2),
    "both ways": Case(
        70, 150, 40, b=2, n=1, causal=False, softcap=2.0, window=60, offsets=(50, 7),
        dtype=jnp.float16,
    ),
    # The first 100 queries are before every key.
    "offsets": Case(140, 200, 128, offsets=(0, 100)),
    "wide heads": Case(140, 140, 200, ids=[documents(-3, 137), documents(100, 40)]),
}  # fmt: skip


def definition(case: Case, q: Any, k: Any, v: Any, g: Any) -> tuple[np.ndarray, ...]:
    """Return out, lse, and dq, dk, dv of `sum(g * out) + sum(lse)`, in float64."""
    q, k, v, g = (np.asarray(a, np.float64) for a in (q, k, v, g))
    groups = case.n // case.k
    k, v = (np.repeat(a, groups, axis=2) for a in (k, v))
    i, j = np.arange(case.t)[:, None], np.arange(case.s)
    if case.offsets is not None:
        i, j = i + case.offsets[0], j + case.offsets[1]
    mask = (j <= i) if case.causal else np.ones((case.t, case.s), bool)
    if case.window is not None:
        mask &= abs(i - j) < case.window
    if case.ids is not None:
        a, c = (np.asarray(ids) for ids in case.ids)
        mask &= (a[:, None] == c) & (a[:, None] > 0)
    s = np.einsum("btnh,bsnh->bnts", q, k) * case.h**-0.5
    slope = np.ones_like(s)
    if case.softcap is not None:
        s = case.softcap * np.tanh(s / case.softcap)
        slope = 1 - (s / case.softcap) ** 2
    weights = np.where(mask, np.exp(s), 0)
    total = weights.sum(-1, keepdims=True)
    lse = np.where(total > 0, np.log(np.where(total > 0, total, 1)), MASKED)[..., 0]
    p = weights / np.where(total > 0, total, 1)
    out = np.einsum("bnts,bsnh->btnh", p, v)
    dp = np.einsum("btnh,bsnh->bnts", g, v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True) + 1) * slope * case.h**-0.5
    dq = np.einsum("bnts,bsnh->btnh", ds, k)
    dk, dv = np.einsum("bnts,btnh->bsnh", ds, q), np.einsum("bnts,btnh->bsnh", p, g)
    dk, dv = (a.reshape(case.b, case.s, case.k, groups, case.h).sum(3) for a in (dk, dv))
    return out, lse, dq, dk, dv


def request_of(case: Case, q: Any, k: Any, v: Any) -> tuple[Options, Inputs]:
    ids: list[Any] = [None, None]
    if case.ids is not None:
        ids = [jnp.tile(jnp.asarray(a, jnp.int32), (case.b, 1)) for a in case.ids]
    numbers = [
        None if a is None else jnp.int32(a) for a in (case.window, *(case.offsets or (None,) * 2))
    ]
    return Options(case.causal, case.softcap, case.h**-0.5), Inputs(q, k, v, *ids, *numbers)


@jax.jit(static_argnums=0)
def run(o: Options, x: Inputs, g: jax.Array) -> tuple[jax.Array, ...]:
    """Return out, lse, dq, dk, dv."""

    def call(q: Any, k: Any, v: Any) -> Any:
        return attention(o, x._replace(q=q, k=k, v=v))

    (out, lse), pull = jax.vjp(call, *x[:3])
    return out, lse, *pull((g, jnp.ones_like(lse)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_interpreted_agrees_with_the_definition(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    rng = np.random.default_rng(0)
    query, key = (case.b, case.t, case.n, case.h), (case.b, case.s, case.k, case.h)
    arrays = [jnp.asarray(rng.normal(size=size), case.dtype) for size in (query, key, key, query)]
    o, x = request_of(case, *arrays[:3])
    found = [np.asarray(a, np.float64) for a in run(o, x, arrays[3])]
    assert "RACE" not in capsys.readouterr().out
    truth = definition(case, *arrays)
    # Scores, and so the log-sum-exp, are float32; the rest is rounded to 8 or 11 bits, once as p or
    # ds and once as the result.
    np.testing.assert_allclose(found[1], truth[1], rtol=1e-5, atol=1e-5)
    step = float(jnp.finfo(case.dtype).eps)
    for a, b in zip(found, truth, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= step * np.abs(b).max()
        assert not a[b == 0].any()


@pytest.mark.slow
def test_what_is_not_visible_is_not_read() -> None:
    """Two documents, each a tile of 128: nothing of the second reaches the first, not even NaN."""
    rng = np.random.default_rng(0)
    case = Case(256, 256, 64, n=1, causal=False, ids=[documents(128, 128)] * 2)
    q, k, v, g = (jnp.asarray(rng.normal(size=(1, 256, 1, 64)), jnp.bfloat16) for _ in range(4))
    k, v, q, g = (a.at[:, 128:].set(jnp.nan) for a in (k, v, q, g))
    out, lse, *gradients = run(*request_of(case, q, k, v), g)
    for a in (out, *gradients):
        assert np.isfinite(np.asarray(a[:, :128], np.float32)).all()
        assert np.isnan(np.asarray(a[:, 128:], np.float32)).all()
    assert np.isfinite(lse[..., :128]).all()


def aya_8b(h: int, every_option: bool, sharding: Any = None) -> tuple[Options, Inputs, Any]:
    """Return a call on 8,192 tokens, and the shape of the gradient to its output."""

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def number(*shape: int) -> Any:
        return array(*shape, dtype=jnp.int32) if every_option else None

    q, k, v = (array(1, 8192, heads, h) for heads in (32, 8, 8))
    ids = number(1, 8192), number(1, 8192)
    options = Options(not every_option, 50.0 if every_option else None, h**-0.5)
    return options, Inputs(q, k, v, *ids, number(), number(), number()), q


@pytest.mark.parametrize("h", [64, 128, 256])
@pytest.mark.parametrize("every_option", [False, True])
def test_lowered_for_cuda_with_no_gpu(h: int, every_option: bool) -> None:
    o, x, g = aya_8b(h, every_option)
    with target("cuda", "NVIDIA H100", 9.0):
        lowered = run.trace(o, x, g).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("@mosaic_gpu") == 3


# What XLA has to know of a chip that is not there (stream_executor/device_description.proto).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@pytest.mark.slow
@pytest.mark.parametrize("h", [64, 128, 256])
@pytest.mark.parametrize("every_option", [False, True])
def test_compiled_for_hopper_with_no_gpu(
    h: int, every_option: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """To machine code by ptxas, where jax's plugin for CUDA 12 and `nvidia-cuda-nvcc-cu12` are."""
    pytest.importorskip("jax_cuda12_plugin")
    ptxas = pytest.importorskip("nvidia.cuda_nvcc").__path__[0]
    monkeypatch.setenv("MOSAIC_GPU_CUDA_ROOT", ptxas)
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", topology="1x1x1", target_config=H100
    )
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    with target("cuda", "NVIDIA H100", 9.0):
        compiled = run.lower(*aya_8b(h, every_option, sharding)).compile()
    said = "".join(capfd.readouterr())
    # Of the 240 registers a thread, next to nothing is kept in memory instead.
    spilled = [int(size) for size in re.findall(r"stack frame, (\d+) bytes spill stores", said)]
    assert len(spilled) == 3
    assert max(spilled) <= 200
    assert "serialized" not in said
    memory: Any = compiled.memory_analysis()
    # The scores of one head alone would be 128 MiB.
    assert memory.temp_size_in_bytes < 2**24


def test_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def why(
        h: int = 64, dtype: Any = jnp.bfloat16, scale: float = 1.0, capability: float = 9.0
    ) -> str | None:
        array: Any = jax.ShapeDtypeStruct((1, 8, 1, h), dtype)
        here = Target("cuda", "", capability)
        return mosaic_gpu.refuses(here, Options(True, None, scale), Inputs(array, array, array))

    monkeypatch.setattr(mosaic_gpu, "cuda_runtime", lambda: None)
    assert why() is None
    assert "Hopper" in str(why(capability=8.0))
    assert "Hopper" in str(why(capability=10.0))
    assert "float32" in str(why(dtype=jnp.float32))
    assert "320" in str(why(h=320))
    assert "scale" in str(why(scale=0.0))
    monkeypatch.setattr(mosaic_gpu, "cuda_runtime", lambda: 12090)
    assert "12.9" in str(why())
    monkeypatch.setattr(mosaic_gpu, "cuda_runtime", lambda: 12091)
    assert why() is None
