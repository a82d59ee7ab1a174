"""Attention on a mesh of devices, the ring among them, against the definition on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

import aya_kernels

# How the devices are arranged, and the axes that rows, heads and the sequence are split over.
PLACEMENTS = {
    "rows": ((2, 1, 1), ("a",), (), ()),
    "heads that share a key head": ((1, 4, 1), (), ("b",), ()),
    "a ring": ((1, 1, 4), (), (), ("c",)),
    "a ring over two axes": ((1, 2, 4), (), (), ("b", "c")),
    "all": ((2, 2, 2), ("a",), ("b",), ("c",)),
}
OPTIONS = {
    "causal": {},
    "window": {"window": 5},
    "both ways, capped": {"causal": False, "softcap": 2.0},
    "in the middle of a sequence": {"q_offset": 9, "kv_offset": 4},
}
CASES = [
    *((placement, "causal", "mosaic_tpu") for placement in PLACEMENTS),
    *((placement, option, "xla") for placement in ("a ring", "all") for option in OPTIONS),
    ("a ring over two axes", "window", "xla"),
    ("all", "window", "mosaic_tpu"),
]


@pytest.fixture(scope="module")
def spread():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    jobs = [
        (PLACEMENTS[placement][0], PLACEMENTS[placement][1:], OPTIONS[option], backend)
        for placement, option, backend in CASES
    ]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("spread_attention.py")), json.dumps(jobs)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" · ".join)
def test_many_devices_give_the_attention_of_one(spread, case):
    out, lse, *grads = spread[case]
    assert out < 2e-5 and lse < 2e-5 and max(grads) < 1e-4


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("batch", "3 rows do not divide into the 2 parts"),
        ("heads", "5 query heads do not divide into the 2 parts"),
        ("sequence", "7 queries do not divide into the 2 parts"),
    ],
)
def test_what_does_not_divide_is_told(axis, message):
    place = aya_kernels.Placement(AbstractMesh((2,), ("a",)), **{axis: ("a",)})
    x = jnp.zeros((3, 7, 5, 8))
    with pytest.raises(ValueError, match=message):
        aya_kernels.attention(x, x, x, placement=place, backend="mosaic_tpu")
