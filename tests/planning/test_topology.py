"""Names of topologies, what they stand for, and what is said where there is no such thing."""

import pytest

from aya_jax.errors import AyaError
from aya_jax.planning import topology
from aya_jax.planning.topology import describe_devices, parse_topology


@pytest.mark.parametrize(
    ("name", "chip", "chips", "devices"),
    [
        ("v5e:8x8", "v5e", 64, 64),
        ("v5p:4x4x8", "v5p", 128, 128),
        ("v6e:16x16", "v6e", 256, 256),
        # Two slices.
        ("2xv5e:4x8", "v5e", 64, 64),
        # A chip of this kind is two devices.
        ("tpu7x:2x2x1", "tpu7x", 4, 8),
        ("gpu:8xh100", "h100", 8, 8),
        ("gpu:16xa100-80", "a100-80", 16, 16),
    ],
)
def test_a_topology_has_chips_and_devices(name, chip, chips, devices):
    found = parse_topology(name)
    assert (found.chip.name, found.chips, found.device_count) == (chip, chips, devices)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e", "write a chip and its shape"),
        ("v5e:8x8x8", "v5e has 2 sides"),
        ("v5p:4x4", "v5p has 3 sides"),
        ("v5q:8x8", "unknown TPU 'v5q'; did you mean"),
        ("h100:2x2", "unknown TPU 'h100'"),
        ("gpu:8xh10", "unknown GPU 'h10'; did you mean 'h100'?"),
        ("gpu:12xh100", "whole machines"),
        ("v5e:0x8", "no side, and no number of slices, may be 0"),
        ("0xv5e:8x8", "no side, and no number of slices, may be 0"),
    ],
)
def test_what_is_no_topology_is_told_in_a_line(name, said):
    with pytest.raises(AyaError, match=said.replace("?", r"\?")) as error:
        parse_topology(name)
    assert "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "tpu"), ("gpu:8xh100", "cuda")])
def test_a_compiler_that_is_not_installed_is_named(name, extra, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(AyaError, match=rf"not installed; pip install 'aya_jax\[{extra}\]'"):
        describe_devices(parse_topology(name))


@pytest.mark.parametrize(
    ("name", "rings"),
    [
        ("v5e:8x16", (False, True)),
        ("v6e:16x16", (True, True)),
        ("v5p:4x4x8", (True, True, True)),
        # Less than a cube of 4 x 4 x 4 is joined by copper alone.
        ("v5p:2x2x4", (False, False, False)),
    ],
)
def test_sides_that_close_to_a_ring(name, rings):
    found = parse_topology(name)
    assert tuple(found.wraps(i) for i in range(len(found.shape))) == rings
