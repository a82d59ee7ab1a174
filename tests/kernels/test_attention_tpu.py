"""Attention's kernels for TPUs: the list of steps, what is never read, and compiling for real chips."""

import importlib
import os
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aya_kernels
from aya_kernels.attention.inputs import Inputs, Options
from aya_kernels.attention.schedule import Layout, schedule
from aya_kernels.backends import target

# By its full name: in the package `attention` is the function.
mosaic_tpu = importlib.import_module("aya_kernels.attention.mosaic_tpu")


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 1, 1), (1, 1, 9), (1, 8, 1)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_steps_are_the_visible_blocks_row_by_row(
    shape: tuple[int, int, int], density: float
) -> None:
    rng = np.random.default_rng(0)
    some = rng.random(shape) < density
    every = some & (rng.random(shape) < 0.5)
    words, count = jax.jit(schedule)(some, every)
    steps = [Layout.of(shape).read(word) for word in words[: int(count)]]
    got = [tuple(int(field) for field in step) for step in steps]
    want = []
    for b, i in np.ndindex(*shape[:2]):
        columns = np.flatnonzero(some[b, i]).tolist() or [0]
        for j in columns:
            ends = int(j == columns[0]), int(j == columns[-1])
            want.append((b, i, j, *ends, int(some[b, i, j]), int(every[b, i, j])))
    assert got == want


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        # Documents of one block each: the first must not read the second.
        ({"causal": False, "packed": True}, slice(0, 128)),
        # A window of 100: the last block reads the one before, and that nothing of the first.
        ({"causal": True, "window": 100}, slice(384, 512)),
        ({"causal": False, "window": 100}, slice(384, 512)),
    ],
)
def test_hidden_blocks_are_never_read(options: dict[str, Any], seen: slice) -> None:
    options = dict(options)
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.normal(size=(1, 512, n, 8)).astype(np.float32) for n in (2, 1, 1, 2))
    if options.pop("packed", False):
        ids = np.repeat(np.array([[1, 2, 3, 4]], np.int32), 128, axis=1)
        options["segment_ids"] = ids, ids
    hidden = slice(128, 256) if seen.start == 0 else slice(0, 128)

    @jax.jit
    def both(q: Any, k: Any, v: Any, g: Any) -> Any:
        call = partial(aya_kernels.attention, backend="mosaic_tpu", **options)
        out, pull = jax.vjp(call, q, k, v)
        return out, *pull(g)

    clean = both(q, k, v, g)
    for x in (q, k, v, g):
        # What is multiplied by a probability of zero would still be NaN.
        x[:, hidden] = np.nan
    for got, want in zip(both(q, k, v, g), clean, strict=True):
        np.testing.assert_array_equal(got[:, seen], want[:, seen])


def test_a_group_may_take_several_steps() -> None:
    # No divisor of 11 is small enough: each head of the group has steps of its own.
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.normal(size=(1, 140, n, 8)).astype(np.float32) for n in (11, 1, 1, 11))
    results = []
    for backend in ("mosaic_tpu", "reference"):
        call = partial(aya_kernels.attention, window=50, backend=backend)
        out, pull = jax.vjp(jax.jit(call), q, k, v)
        results.append((out, *pull(g)))
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_long_sequences_get_longer_blocks() -> None:
    # The steps of 131,072 tokens have to lie in 1 MiB of scalar memory.
    def words(b: int, length: int, n: int) -> int:
        q, k = (jax.ShapeDtypeStruct((b, length, heads, 128), jnp.bfloat16) for heads in (n, 8))
        with target("tpu", "TPU v5 lite"):
            tiling = mosaic_tpu.Tiling.of(Inputs(q, k, k))  # type: ignore[arg-type]
        return b * -(-length // tiling.bq) * -(-length // tiling.bk)

    assert words(1, 8192, 64) == 64 * 16
    for b in (1, 4):
        assert words(b, 131072, 64) * 4 <= 1 << 19


def test_only_bfloat16_and_float32() -> None:
    x = jnp.zeros((1, 4, 1, 8), jnp.float16)
    with pytest.raises(ValueError, match="float16"):
        aya_kernels.attention(x, x, x, backend="mosaic_tpu")


CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
EVERYTHING = {"ids": True, "window": True, "softcap": 30.0, "offsets": True}
# What a kernel takes, as the compiler writes it into the text of the program.
VMEM = r'"tpu_custom_call".*"used_scoped_memory_configs":\[{"memory_space":"1","offset":"0","size":"(\d+)"'
MODELS: dict[str, dict[str, Any]] = {
    "Aya 8B": {"n": 32, "k": 8},
    "Aya 32B, every option": {"n": 64, "k": 8, **EVERYTHING},
    "both ways": {"n": 32, "k": 8, "causal": False, "ids": True, "window": True},
    "float32, every option": {"n": 32, "k": 8, "dtype": jnp.float32, **EVERYTHING},
    "heads of 64": {"n": 32, "k": 8, "h": 64, **EVERYTHING},
    "heads of 256": {"n": 16, "k": 8, "h": 256, **EVERYTHING},
    "heads of 256 in float32": {"n": 8, "k": 8, "h": 256, "dtype": jnp.float32, **EVERYTHING},
    "lengths and heads that fill no block": {"n": 6, "k": 2, "h": 80, "t": 1000, "s": 1500},
}


@pytest.fixture(scope="module")
def devices() -> Any:
    """A function from a chip's name to a device that is only described."""
    pytest.importorskip("libtpu", reason="needs pip install '.[tpu]'")
    from jax.experimental import topologies

    # Without these libtpu asks the cloud what it runs on, and lets one process at a time use it.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    return lambda chip: topologies.get_topology_desc(
        platform="tpu", topology_name=CHIPS[chip]
    ).devices[0]


def arguments(
    device: Any,
    *,
    n: int,
    k: int,
    h: int = 128,
    t: int = 8192,
    s: int | None = None,
    dtype: Any = jnp.bfloat16,
    causal: bool = True,
    softcap: float | None = None,
    ids: bool = False,
    window: bool = False,
    offsets: bool = False,
) -> tuple[Options, Inputs, jax.ShapeDtypeStruct]:
    """Return the options, the described inputs and the described log-sum-exp of a call."""
    s = s or t
    array = partial(jax.ShapeDtypeStruct, sharding=jax.sharding.SingleDeviceSharding(device))
    keys, number = array((1, s, k, h), dtype), array((), jnp.int32)
    x: Any = Inputs(
        array((1, t, n, h), dtype),
        keys,
        keys,
        array((1, t), jnp.int32) if ids else None,
        array((1, s), jnp.int32) if ids else None,
        number if window else None,
        number if offsets else None,
        number if offsets else None,
    )
    return Options(causal, softcap, h**-0.5), x, array((1, n, t), jnp.float32)


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chip", CHIPS)
def test_compiles_for_a_chip(devices: Any, chip: str, model: str, record_property: Any) -> None:
    device = devices(chip)
    o, x, row = arguments(device, **MODELS[model])
    t, n, s = *x.q.shape[1:3], x.k.shape[1]
    with target("tpu", device.device_kind):
        forward = jax.jit(partial(mosaic_tpu.forward, o)).lower(x)
        backward = jax.jit(partial(mosaic_tpu.backward, o)).lower(x, row, row, x.q)
    for name, lowered, kernels in (("forward", forward, 1), ("backward", backward, 2)):
        compiled = lowered.compile()
        vmem = [int(size) for size in re.findall(VMEM, compiled.as_text())]
        assert len(vmem) == kernels
        assert max(vmem) <= mosaic_tpu.VMEM_BYTES
        hbm = compiled.memory_analysis().temp_size_in_bytes
        record_property(
            name, f"VMEM {max(vmem)} bytes, HBM beyond arguments and results {hbm} bytes"
        )
        # The scores in the dtype of q; what there is are the arrays in another order.
        assert hbm < n * t * s * x.q.dtype.itemsize / 4
