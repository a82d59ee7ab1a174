import jax
import pytest
from jax.sharding import PartitionSpec

from aya_jax.errors import AyaError
from aya_jax.sharding import mesh as meshes
from aya_jax.sharding.mesh import batch_sharding, device_mesh, logical_rules, replicated, shardings


@pytest.fixture
def eight(monkeypatch):
    """Eight of the one device there is: enough to lay out a mesh, not to compute on it."""
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(jax, "devices", lambda: list(range(8)))
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
