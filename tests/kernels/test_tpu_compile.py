"""Every kernel compiled for TPUs that are only described, at the shapes of Aya 8B and 32B.

`make tpu-compile` installs the compiler and runs these; without it they are skipped.
"""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from benchmarks import compiled
from jax.sharding import AbstractDevice, AbstractMesh, Mesh

import aya_kernels

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.fixture(autouse=True)
def full_precision() -> None:
    """In place of the one for all kernels' tests: compiled as the command of the table compiles them."""


def recorded(name: str, chip: str) -> float:
    """Return the MiB of VMEM that docs/benchmarks.md has for the largest kernel of a program."""
    start = f"| {name} | {chip} | "
    rows = [row for row in DOCUMENT.read_text().splitlines() if row.startswith(start)]
    assert len(rows) == 1, "docs/benchmarks.md: make its table with `python -m benchmarks.compiled`"
    return float(rows[0].strip("|").split("|")[5])


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.parametrize("chip", compiled.CHIPS)
@pytest.mark.parametrize("name", compiled.CASES)
def test_compiles_and_holds_little(name: str, chip: str) -> None:
    libtpu = pytest.importorskip(
        "libtpu", reason="the TPU's compiler is not here; see `make tpu-compile`"
    )
    case = compiled.CASES[name]
    cost = compiled.compile_case(case, chip)
    assert cost.vmem and max(cost.vmem) <= compiled.VMEM_BYTES[chip]
    assert cost.hbm < compiled.HBM_BYTES[chip]
    assert cost.temporaries <= case.most
    # Nothing larger than the largest argument, whose lengths may be filled up to whole blocks.
    assert cost.largest <= 1.25 * compiled.largest_argument(case)
    if f"libtpu {libtpu.__version__}" in DOCUMENT.read_text():
        assert max(cost.vmem) / compiled.MIB <= 1.25 * recorded(name, chip) + 1


def test_the_largest_array_of_a_program_is_found() -> None:
    line = "%a = (bf16[2,3]{1,0:T(8,128)}, f32[]) custom-call(s32[5]{0} %b, pred[7,1]{1,0} %c)"
    assert compiled.largest_array(line) == 7


@pytest.mark.parametrize("name", [name for name, case in compiled.CASES.items() if not case.split])
def test_lowers_for_a_tpu_without_its_compiler(name: str) -> None:
    mesh = Mesh(np.array(jax.devices()[:1]), ("chips",))
    run, shapes = compiled.program(compiled.CASES[name], mesh)
    plain = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in shapes.items()}
    tpu = AbstractDevice("TPU v5 lite", 1, "tpu")
    with (
        aya_kernels.target("tpu", "TPU v5 lite"),
        jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=tpu)),
    ):
        lowered = jax.jit(run).trace(**plain).lower(lowering_platforms=("tpu",))
    kernels = len(re.findall("tpu_custom_call", lowered.as_text()))
    assert kernels == (3 if name.startswith("attention") else 1)
