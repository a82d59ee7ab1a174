"""The house of docs/architecture.md: imports run downwards, and only where they may."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"aya_jax": ROOT / "aya_jax", "aya_kernels": ROOT / "kernels" / "aya_kernels"}

# The floors, lowest first; a room may import from the floors under its own.
FLOORS = (
    {"errors", "compat", "metrics", "progress"},
    {"aya_kernels", "sharding", "data"},
    {"models", "losses"},
    {"checkpoints"},
    {"model"},
    {"training", "generation", "merging"},
    {"arbitrage"},
    {"evaluation", "planning", "report"},
    {"recipe"},
    {"cli", "__init__"},
    {"__main__"},
)
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# What names a mesh axis is one of these calls, or an axis name itself. `data` is a field of records
# and lineages too, so the name alone says nothing.
PLACING = {"Mesh", "PartitionSpec", "NamedSharding", "make_mesh", "shard_map", "axis_index"}
COLLECTIVES = {"psum", "pmean", "pmax", "pmin", "all_gather", "all_to_all", "ppermute"}
AMBIGUOUS = {"data"}


def imports_of(source):
    """Return every dotted name that a module imports, wherever in it the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written in full"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room_of(name):
    """Return the room that a dotted name of ours lies in, None for a package of others."""
    package, _, rest = name.partition(".")
    if package == "aya_kernels":
        return package
    if package != "aya_jax":
        return None
    room = rest.split(".")[0]
    return room if room in FLOOR_OF else "__init__"


def modules():
    """Yield (path to show, room, source) of every module of the product."""
    for package, place in PACKAGES.items():
        for path in sorted(place.rglob("*.py")):
            first = path.relative_to(place).parts[0].removesuffix(".py")
            room = package if package == "aya_kernels" else first
            yield path.relative_to(ROOT).as_posix(), room, path.read_text("utf-8")


MODULES = list(modules())


def axis_names():
    """Return the names of the mesh axes, as sharding/mesh.py has them."""
    tree = ast.parse((ROOT / "aya_jax" / "sharding" / "mesh.py").read_text("utf-8"))
    return next(
        set(ast.literal_eval(node.value))
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "AXES"
    )


def mesh_axes_named(source, axes, calls=True):
    """Return what in a module names a mesh axis, each with its line; `calls`: or takes one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in axes - AMBIGUOUS:
            found.append(f"{node.lineno}: {node.value!r}")
        elif calls and isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in PLACING | COLLECTIVES:
                found.append(f"{node.lineno}: {called}(...)")
    return found


def test_every_room_has_a_floor():
    homeless = {room for _, room, _ in MODULES} - FLOOR_OF.keys()
    assert not homeless, f"give {sorted(homeless)} a floor here and in docs/architecture.md"


def test_the_drawing_has_every_room_on_its_floor():
    drawn = {}
    for number, content in re.findall(r"^ +(\d+) │(.*)│$", PAGE, re.MULTILINE):
        drawn[int(number)] = {
            re.split(r"[:/. ]", cell.strip().removeprefix("kernels/"))[0]
            for cell in content.split("│")
        }
    assert drawn == dict(enumerate(FLOORS))


def test_the_table_of_rooms_has_every_module_and_nothing_else():
    table = PAGE.split("## The rooms")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\|[ \d]*\| `([^`]+)`", table, re.MULTILINE))
    modules = {path.removeprefix("aya_jax/") for path, _, _ in MODULES}
    for name in listed:
        assert any(
            path == name or (name.endswith("/") and path.startswith(name)) for path in modules
        )
    for path in modules - {f"{room}/__init__.py" for room in FLOOR_OF}:
        folders = {f"{parent.as_posix()}/" for parent in Path(path).parents}
        assert path in listed or folders & listed, f"docs/architecture.md does not tell of {path}"


def test_imports_run_downwards_and_reach_no_neighbour():
    wrong = [
        f"{path} ({room}, floor {FLOOR_OF[room]}) imports {name}"
        for path, room, source in MODULES
        for name in sorted(imports_of(source))
        if (target := room_of(name)) is not None
        and target != room
        and FLOOR_OF[target] >= FLOOR_OF[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_only_models_imports_flax():
    rooms = {
        room
        for _, room, source in MODULES
        for name in imports_of(source)
        if name.split(".")[0] == "flax"
    }
    assert rooms == {"models"}


def test_kernels_need_nothing_but_jax_and_what_it_needs():
    packages = {
        name.split(".")[0]
        for _, room, source in MODULES
        if room == "aya_kernels"
        for name in imports_of(source)
    }
    assert packages <= {"aya_kernels", "jax", "numpy"} | sys.stdlib_module_names


def test_only_sharding_names_a_mesh_axis():
    axes = axis_names()
    assert {"data", "fsdp", "tensor"} <= axes
    wrong = [
        f"{path}:{place}"
        for path, room, source in MODULES
        if room != "sharding"
        # A kernel takes the axes that it is given, and knows none by name.
        for place in mesh_axes_named(source, axes, calls=room != "aya_kernels")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("from aya_jax.recipe import jobs", "recipe"),
        ("def late():\n    from aya_jax.recipe.run import run_recipe", "recipe"),
        ("if TYPE_CHECKING:\n    import aya_jax.model", "model"),
        ("from aya_jax import load", "__init__"),
        ("import aya_kernels as k", "aya_kernels"),
        ("import jax", None),
    ],
)
def test_an_import_is_seen_wherever_it_stands(source, room):
    assert {room_of(name) for name in imports_of(source)} == {room}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("rules = {'embed': 'fsdp'}", 1),
        ("spec = jax.sharding.PartitionSpec('data')", 1),
        ("total = jax.lax.psum(x, 'data')", 1),
        ("lineage = {'data': []}", 0),
        ("def place(mesh: jax.sharding.Mesh) -> None: ...", 0),
    ],
)
def test_a_named_mesh_axis_is_seen(source, count):
    assert len(mesh_axes_named(source, axis_names())) == count
