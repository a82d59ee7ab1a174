"""decode_attention's kernel for TPUs: its list of steps, and compiling for chips only described."""

import os
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aya_kernels
from aya_kernels.decode_attention import mosaic_tpu
from aya_kernels.decode_attention.inputs import Inputs

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# What a kernel takes, as the compiler writes it into the text of the program.
VMEM = r'"used_scoped_memory_configs":\[{"memory_space":"1","offset":"0","size":"(\d+)"'
# Of the chip with the least.
VMEM_BYTES = 64 << 20
BATCH, SLOTS = 64, 8192
# Query heads, key heads, head size, dtype, queries, slots of a page; with several queries go a window
# and a softcap.
CASES: dict[tuple[str, str], tuple[int, int, int, Any, int, int | None]] = {
    ("v5e", "Aya 8B"): (32, 8, 128, jnp.bfloat16, 1, None),
    ("v5p", "Aya 8B"): (32, 8, 128, jnp.bfloat16, 1, None),
    ("v6e", "Aya 8B in pages of 64"): (32, 8, 128, jnp.bfloat16, 1, 64),
    ("v5p", "Aya 8B in pages of 16, four queries"): (32, 8, 128, jnp.bfloat16, 4, 16),
    ("v5e", "Aya 8B in float32 and pages of 64"): (32, 8, 128, jnp.float32, 1, 64),
    ("v5e", "Aya 32B in pages of 128"): (64, 8, 128, jnp.bfloat16, 1, 128),
    ("v5p", "Aya 32B in pages of 256"): (64, 8, 128, jnp.bfloat16, 1, 256),
    ("v6e", "Aya 32B, four queries"): (64, 8, 128, jnp.bfloat16, 4, None),
    ("v6e", "Aya 32B on eight chips"): (8, 1, 128, jnp.bfloat16, 1, 64),
    ("v5e", "heads of 256 in float32"): (32, 8, 256, jnp.float32, 1, None),
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


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.parametrize(("chip", "case"), CASES)
def test_compiles_for_a_chip(devices: Any, chip: str, case: str, record_property: Any) -> None:
    n, k, h, dtype, queries, page = CASES[chip, case]
    device = devices(chip)
    array = partial(jax.ShapeDtypeStruct, sharding=jax.sharding.SingleDeviceSharding(device))
    shape = (BATCH, SLOTS, k, h) if page is None else (BATCH * SLOTS // page, page, k, h)
    arrays = {
        "q": array((BATCH, queries, n, h), dtype),
        "k_cache": array(shape, dtype),
        "v_cache": array(shape, dtype),
        "lengths": array((BATCH,), jnp.int32),
    }
    if page is not None:
        arrays["page_table"] = array((BATCH, SLOTS // page), jnp.int32)
    options: dict[str, Any] = {"backend": "mosaic_tpu"}
    if queries > 1:
        arrays["window"] = array((), jnp.int32)
        options["softcap"] = 30.0
    call = jax.jit(partial(aya_kernels.decode_attention, return_lse=True, **options))
    with aya_kernels.target("tpu", device.device_kind):
        lowered = call.lower(**arrays)
    assert lowered.as_text().count("tpu_custom_call") == 1
    compiled = lowered.compile()
    vmem = max(int(size) for size in re.findall(VMEM, compiled.as_text()))
    hbm = compiled.memory_analysis().temp_size_in_bytes
    record_property("forward", f"VMEM {vmem} bytes, HBM beyond arguments and results {hbm} bytes")
    assert vmem <= VMEM_BYTES
    # The caches are read where they are: a copy of one would be 128 MiB at the least.
    assert hbm < 32 << 20


def test_caches_that_would_be_copied_are_refused() -> None:
    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)
    for (slots, k, h), reason in {
        (64, 8, 64): "do not fill tiles",
        (64, 4, 256): "do not fill tiles",
        (64, 12, 128): "do not fill tiles",
        (63, 1, 128): "do not fill tiles of 8",
        (64, 1, 128): None,
        (64, 4, 128): None,
        (63, 8, 256): None,
    }.items():
        q, cache = (
            jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((2, 2 * k, h), (2, slots, k, h))
        )
        with aya_kernels.target("tpu", "TPU v5 lite"):
            told = aya_kernels.explain("decode_attention", q, cache, cache, lengths)
        if reason is None:
            assert told.chosen == "mosaic_tpu"
        else:
            assert told.chosen == "xla" and reason in told.others["mosaic_tpu"]


@pytest.mark.parametrize("window", [None, 10, 1000])
@pytest.mark.parametrize("queries", [1, 3])
def test_as_many_steps_as_rows_have_filled(queries: int, window: int | None) -> None:
    lengths = np.array([0, 1, 8, 9, 64, 500, 0, 37], np.int32)
    cache = jnp.zeros((len(lengths), 512, 1, 8))
    x = Inputs(
        jnp.zeros((len(lengths), queries, 2, 8)),
        cache,
        cache,
        jnp.asarray(lengths),
        window=None if window is None else jnp.int32(window),
    )
    t = mosaic_tpu.Tiling.of(x)
    assert t.parts == 2 and t.slots == 8
    steps, held = mosaic_tpu._steps(x, t)
    # In numbers: the blocks of slots that hold what the earliest or the latest query of a row sees.
    want = []
    for b, length in enumerate(lengths):
        first = 0 if window is None else max(0, length - window - queries + 1)
        want += [(b, j) for j in range(first // t.slots, -(-length // t.slots))]
    got = []
    for part, count in enumerate(steps.counts):
        mine = slice(part * t.length, part * t.length + int(count))
        pairs = list(zip(steps.rows[mine].tolist(), steps.steps[mine].tolist(), strict=True))
        assert pairs == sorted(pairs)
        assert {b for b, _ in pairs} == set(np.flatnonzero(held[part]))
        got += pairs
    assert sorted(got) == want
    # The two cores have the same to do, but for the odd step of a row.
    assert abs(int(steps.counts[0] - steps.counts[1])) <= 2
