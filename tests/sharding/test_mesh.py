from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from aya_jax.errors import AyaError
from aya_jax.sharding import mesh as meshes
from aya_jax.sharding.mesh import (
    batch_sharding,
    candidate_meshes,
    device_mesh,
    logical_rules,
    replicated,
    shardings,
)


@dataclass(frozen=True)
class Chip:
    """What is read of a device where a mesh is laid out."""

    id: int
    platform: str = "cpu"
    device_kind: str = "TPU v5 lite"
    coords: tuple[int, ...] = (0, 0, 0)
    core_on_chip: int = 0
    slice_index: int = 0
    process_index: int = 0


def slices(count, side):
    """TPU slices of `side` x `side` chips."""
    return [
        Chip(s * side**2 + y * side + x, "tpu", coords=(x, y, 0), slice_index=s, process_index=s)
        for s in range(count)
        for y in range(side)
        for x in range(side)
    ]


@pytest.fixture
def eight(monkeypatch):
    """Eight of the one device there is: enough to lay out a mesh, not to compute on it."""
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(jax, "devices", lambda: [Chip(id=i) for i in range(8)])
    monkeypatch.setattr(meshes, "Mesh", lambda devices, axes: (devices.shape, axes))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 8, 1, 1, 1)),
        ({"fsdp": 8}, (1, 8, 1, 1, 1)),
        ({"data": 2, "tensor": 2}, (2, 2, 2, 1, 1)),
        ({"data": -1, "fsdp": 1, "tensor": 4}, (2, 1, 4, 1, 1)),
        ({"data": 2, "fsdp": 2, "expert": 2}, (2, 2, 1, 1, 2)),
        ({"fsdp": 1, "sequence": 8}, (1, 1, 1, 8, 1)),
    ],
)
def test_one_axis_takes_what_the_others_leave(eight, sizes, shape):
    assert device_mesh(**sizes) == (shape, ("data", "fsdp", "tensor", "sequence", "expert"))


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 3},
        {"tensor": 16},
        {"fsdp": 4},
        {"data": -1},
        {"data": 0, "fsdp": 8},
        {"data": 0},
        {"data": -2, "fsdp": 8},
        {"data": 2, "fsdp": 2, "tensor": 3},
    ],
)
def test_sizes_that_do_not_fit_are_told(eight, sizes):
    with pytest.raises(AyaError, match=r"device_mesh: \{.*\} does not fit 8 devices; the sizes"):
        device_mesh(**sizes)


def test_only_data_crosses_from_slice_to_slice():
    mesh = device_mesh(data=4, fsdp=4, tensor=2, devices=slices(2, 4))
    of_row = [{chip.slice_index for chip in row.ravel()} for row in mesh.devices]
    assert of_row == [{0}, {0}, {1}, {1}]
    with pytest.raises(AyaError, match="data is 1; with 2 slices it must be a multiple of 2"):
        device_mesh(devices=slices(2, 4))


def test_no_mesh_worth_trying_gathers_parameters_from_slice_to_slice():
    chips = np.asarray(slices(2, 4))
    tried = candidate_meshes(chips, {"kv": 8, "embed": 64, "experts": 1}, whole=True)
    assert {"data": 2, "fsdp": 16} in [
        {axis: size for axis, size in mesh.shape.items() if size > 1} for mesh in tried
    ]
    for mesh in tried:
        assert all(len({chip.slice_index for chip in row.ravel()}) == 1 for row in mesh.devices)


def test_heads_are_split_over_neighbours_of_the_torus():
    mesh = device_mesh(tensor=4, devices=slices(1, 4))
    for group in mesh.devices.reshape(-1, 4):
        columns, rows = ({chip.coords[i] for chip in group} for i in (0, 1))
        assert {len(columns), len(rows)} == {1, 4}


def test_rules_override_single_defaults():
    plain = dict(logical_rules())
    assert plain["batch"] == ("data", "fsdp") and plain["embed"] == "fsdp"
    changed = dict(logical_rules(rules={"batch": ["data"], "mlp": None}))
    assert changed == {**plain, "batch": ("data",), "mlp": None}
    hash(logical_rules(rules={"batch": ["data", "fsdp"]}))  # they choose a compiled program


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"embd": "fsdp"}, "logical axis 'embd'; did you mean 'embed'"),
        ({"embed": "fdsp"}, "'embed': the mesh has no axis 'fdsp'; did you mean 'fsdp'"),
        ({"batch": ["data", "tensr"]}, "no axis 'tensr'; did you mean 'tensor'"),
    ],
)
def test_a_misspelt_axis_is_told(rules, told):
    with pytest.raises(AyaError, match=told):
        logical_rules(rules=rules)


def test_logical_axes_are_placed_by_the_rules():
    mesh = device_mesh()
    logical = {
        "q": PartitionSpec("layers", "embed", "heads", "head"),
        "norm": PartitionSpec("embed"),
    }
    placed = shardings(logical, mesh, logical_rules())
    assert placed["q"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert placed["norm"].spec == PartitionSpec("fsdp")
    # Two axes that want the same place: one has it, the other is not split.
    rules = logical_rules(rules={"heads": "fsdp"})
    spec = shardings(logical, mesh, rules)["q"].spec
    assert sorted(map(str, spec)) == ["None", "None", "None", "fsdp"]
    assert batch_sharding(mesh, rules).spec == PartitionSpec(("data", "fsdp"))
    assert replicated(mesh).spec == PartitionSpec()
