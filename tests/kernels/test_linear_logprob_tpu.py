"""linear_logprob compiled for TPUs that are only described, at the sizes of Aya."""

import os
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import aya_kernels

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# What a kernel takes, as the compiler writes it into the text of the program.
VMEM = r'"used_scoped_memory_configs":\[{"memory_space":"1","offset":"0","size":"(\d+)"'
# Of the chip with the least.
VMEM_BYTES = 64 << 20
WORDS = 256_000
# Tokens, hidden size, dtype, and whether all that can be asked for is.
CASES: dict[tuple[str, str], tuple[int, int, Any, bool]] = {
    ("v5e", "Aya 8B"): (8192, 4096, jnp.bfloat16, False),
    ("v5p", "Aya 8B, everything asked for"): (16_384, 4096, jnp.bfloat16, True),
    ("v5p", "Aya 32B"): (16_384, 8192, jnp.bfloat16, False),
    ("v6e", "Aya 32B, everything asked for"): (8192, 8192, jnp.bfloat16, True),
    ("v6e", "Aya 8B in float32"): (8192, 4096, jnp.float32, False),
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
    tokens, d, dtype, everything = CASES[chip, case]
    device = devices(chip)
    array = partial(jax.ShapeDtypeStruct, sharding=jax.sharding.SingleDeviceSharding(device))
    options = {"softcap": 30.0, "entropy": True, "argmax": True} if everything else {}

    def loss(hidden: Any, weight: Any, scale: Any, targets: Any, mask: Any) -> Any:
        out = aya_kernels.linear_statistics(
            hidden, weight, targets, mask=mask, scale=scale, backend="mosaic_tpu", **options
        )
        entropy = 0.0 if out.entropy is None else out.entropy.sum()
        return out.logp.sum() + out.lse.sum() + entropy, out.argmax

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    with aya_kernels.target("tpu", device.device_kind):
        lowered = jax.jit(gradient).lower(
            array((tokens, d), dtype),
            array((WORDS, d), dtype),
            array((), jnp.float32),
            array((tokens,), jnp.int32),
            array((tokens,), jnp.bool_),
        )
    assert lowered.as_text().count("tpu_custom_call") == 1
    compiled = lowered.compile()
    vmem = max(int(size) for size in re.findall(VMEM, compiled.as_text()))
    hbm = compiled.memory_analysis().temp_size_in_bytes
    record_property("both", f"VMEM {vmem} bytes, HBM beyond arguments and results {hbm} bytes")
    assert vmem <= VMEM_BYTES
    # A tenth of the logits in float32.
    assert hbm < tokens * WORDS * 4 / 10
