"""What devices exchange, read from texts as compilers write them; the truth is counted by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aya_jax.planning.collectives import device_groups, find_collectives
from aya_jax.planning.hlo import Instruction, Module, array_bytes

# Two axes of four and two: a layer's weights are gathered along the first in a loop of 32 turns, its outputs
# added up along the second; after the loop a gradient is reduced over all. As libtpu writes it.
TPU = """
HloModule jit_step, is_scheduled=true

%add.1 (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[]{:T(128)} parameter(0)
  %y.1 = f32[]{:T(128)} parameter(1)
  ROOT %add.2 = f32[]{:T(128)} add(%x.1, %y.1)
}

%start (param_0.1: bf16[16,64]) -> (bf16[16,64], bf16[64,64]) {
  %param_0.1 = bf16[16,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}, use_global_device_ids=true, frontend_attributes={chain_id="3"}
  ROOT %custom-call.1 = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (param_0.2: bf16[16,64]) -> bf16[64,64] {
  %param_0.2 = bf16[16,64]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%param_0.2), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}, use_global_device_ids=true, frontend_attributes={chain_id="3"}
}

%all-reduce-scatter.1 (param_0.3: f32[64,64]) -> f32[8,64] {
  %param_0.3 = f32[64,64]{1,0:T(8,128)} parameter(0)
  %all-reduce.3 = f32[64,64]{1,0:T(8,128)} all-reduce(%param_0.3), channel_id=9, replica_groups=[1,8]<=[8], use_global_device_ids=true, to_apply=%add.1
  ROOT %dynamic-slice.1 = f32[8,64]{1,0:T(8,128)} dynamic-slice(%all-reduce.3), dynamic_slice_sizes={8,64}
}

%body (param.1: (s32[], /*index=1*/bf16[2,64], bf16[16,64])) -> (s32[], bf16[2,64], bf16[16,64]) {
  %param.1 = (s32[]{:T(128)}, /*index=1*/bf16[2,64]{1,0:T(8,128)(2,1)}, bf16[16,64]{1,0}) parameter(0)
  %gte.1 = bf16[16,64]{1,0} get-tuple-element(%param.1), index=2
  %fusion.1 = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) fusion(%gte.1), kind=kCustom, calls=%start
  %fusion.2 = bf16[64,64]{1,0} fusion(%gte.1), kind=kCustom, calls=%done
  %gte.2 = bf16[2,64]{1,0} get-tuple-element(%param.1), index=1
  %all-reduce.1 = bf16[2,64]{1,0:T(8,128)(2,1)} all-reduce(%gte.2), channel_id=8, replica_groups={{0,1},{2,3},{4,5},{6,7}}, use_global_device_ids=true, to_apply=%add.1
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[2,64]{1,0}, bf16[16,64]{1,0}) tuple(%gte.0, %all-reduce.1, %gte.1)
}

%condition (param.2: (s32[], /*index=1*/bf16[2,64], bf16[16,64])) -> pred[] {
  %param.2 = (s32[]{:T(128)}, bf16[2,64]{1,0}, bf16[16,64]{1,0}) parameter(0)
  %constant.9 = s32[]{:T(128)} constant(35)
  %gte.3 = s32[]{:T(128)} get-tuple-element(%param.2), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%gte.3, %constant.9), direction=LT
}

ENTRY %main.1 (p0: bf16[2,64], p1: bf16[16,64], p2: f32[64,64]) -> (bf16[2,64], f32[8,64]) {
  %p0 = bf16[2,64]{1,0} parameter(0)
  %p1 = bf16[16,64]{1,0} parameter(1)
  %p2 = f32[64,64]{1,0} parameter(2)
  %constant.1 = s32[]{:T(128)} constant(3)
  %copy.1 = s32[]{:T(128)} copy(%constant.1)
  %tuple.2 = (s32[]{:T(128)}, /*index=1*/bf16[2,64]{1,0}, bf16[16,64]{1,0}) tuple(%copy.1, %p0, %p1)
  %while.1 = (s32[]{:T(128)}, bf16[2,64]{1,0}, bf16[16,64]{1,0}) while(%tuple.2), condition=%condition, body=%body
  %fusion.3 = f32[8,64]{1,0} fusion(%p2), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %tuple.3 = (bf16[2,64]{1,0}, f32[8,64]{1,0}) tuple(%while.1, %fusion.3)
}
"""


def mesh_of(*sizes):
    """A mesh of no devices: only its shape is read."""
    names = ("rows", "columns", "more")[: len(sizes)]
    return Mesh(np.broadcast_to(np.asarray(jax.devices()[:1]), sizes), names)


def test_a_program_of_a_tpu():
    found = find_collectives(Module.parse(TPU), mesh_of(4, 2))
    gathered, reduced, scattered = (
        next(c for c in found if c.kind == kind)
        for kind in ("all-gather", "all-reduce", "reduce-scatter")
    )
    assert len(found) == 3
    # From 3 to 35 are 32 turns; the gather's two lines are one gather in the background.
    whole = 64 * 64 * 2
    assert (gathered.axes, gathered.count, gathered.bytes) == (("rows",), 32, 32 * whole)
    assert gathered.sent_bytes == 32 * whole * 3 / 4
    assert (reduced.axes, reduced.count, reduced.bytes) == (("columns",), 32, 32 * 2 * 64 * 2)
    assert reduced.sent_bytes == reduced.bytes * 2 / 2
    assert (scattered.axes, scattered.count) == (("rows", "columns"), 1)
    assert scattered.sent_bytes == 64 * 64 * 4 * 7 / 8


def test_a_loop_of_unknown_length_turns_as_often_as_is_said():
    text = TPU.replace("constant(35)", "parameter(1)")
    module = Module.parse(text)
    assert module.unknown_loops == 1 and Module.parse(TPU).unknown_loops == 0
    counts = {c.kind: c.count for c in find_collectives(module, mesh_of(4, 2), unknown=1000)}
    assert counts == {"all-gather": 1000, "all-reduce": 1000, "reduce-scatter": 1}


def line(groups, kind="all-reduce"):
    return Instruction("a", "f32[8]{0}", kind, f"%x), channel_id=1, {groups}, to_apply=%add")


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        # Of an axis of four the inner half, and the outer one.
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ],
)
def test_groups_in_every_form(groups, expected):
    assert sorted(device_groups(line(groups), 4)) == expected


def test_a_permutation_goes_along_the_axis_in_which_its_pairs_differ():
    text = """
ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %cp = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), channel_id=1, source_target_pairs={{0,2},{2,0},{1,3},{3,1}}
  ROOT %done = f32[8]{0} collective-permute-done(%cp)
}
"""
    (found,) = find_collectives(Module.parse(text), mesh_of(2, 2))
    assert (found.kind, found.axes) == ("collective-permute", ("rows",))
    assert found.sent_bytes == found.bytes == 32


def test_a_program_of_a_gpu():
    """XLA for GPUs begins exchanges in the background, and several arrays at once."""
    text = """
ENTRY %main (p: f32[8], q: bf16[4,8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  %q = bf16[4,8]{1,0} parameter(1)
  %rs = ((f32[8]{0}, bf16[4,8]{1,0}), (f32[2]{0}, bf16[1,8]{1,0})) reduce-scatter-start(%p, %q), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %rd = (f32[2]{0}, bf16[1,8]{1,0}) reduce-scatter-done(%rs)
  %ag = (f32[2]{0}, f32[8]{0}) all-gather-start(%g), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}
  %ad = f32[8]{0} all-gather-done(%ag)
  %ar = (f32[8]{0}, f32[8]{0}) all-reduce-start(%ad, %ad), channel_id=3, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %done = (f32[8]{0}, f32[8]{0}) all-reduce-done(%ar)
}
"""
    found = {c.kind: c.bytes for c in find_collectives(Module.parse(text), mesh_of(2, 2))}
    assert found == {"reduce-scatter": 32 + 64, "all-gather": 32, "all-reduce": 64}


def test_unknown_groups_are_an_error_and_not_a_wrong_number():
    with pytest.raises(ValueError, match="not known"):
        device_groups(line("replica_groups=something new"), 4)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", [12]),
        ("(f32[], s32[4]{0}, pred[5])", [4, 16, 5]),
        ("f8e4m3fn[10]", [10]),
        ("s4[10]", [5]),
        ("token[]", []),
    ],
)
def test_bytes_of_shapes(shape, sizes):
    assert array_bytes(shape) == sizes


def test_a_program_that_xla_compiles_here():
    """Two axes over one device each way make no exchange; what is compiled is read without an error."""
    mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("rows", "columns"))
    split = NamedSharding(mesh, PartitionSpec("rows", "columns"))
    text = jax.jit(lambda x: (x @ x.T).sum(), in_shardings=split).lower(jnp.ones((8, 8))).compile()
    module = Module.parse(text.as_text())
    assert module.computations[module.entry]
    assert find_collectives(module, mesh) == []


def test_what_crosses_slices_is_sent_and_received_by_the_hosts():
    line = (
        "  %{0}.1 = (f32[8,64]{{1,0:T(8,128)}}, u32[], token[]) {0}(%p0, %t0), channel_id=6, "
        'is_host_transfer=true, frontend_attributes={{_xla_megascale_target="{{1,2}}x{{0:3}}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}}\n'
    )
    module = Module.parse(
        "ENTRY %main (p0: f32[8,64]) -> f32[8,64] {\n"
        "  %p0 = f32[8,64]{1,0} parameter(0)\n" + line.format("recv") + line.format("send") + "}\n"
    )

    class Device:
        def __init__(self, number):
            self.slice_index = number // 4

    devices = np.array([Device(i) for i in range(8)], dtype=object).reshape(4, 2)
    mesh = SimpleNamespace(shape={"data": 4, "fsdp": 2}, size=8, devices=devices)
    (found,) = find_collectives(module, mesh)
    assert (found.kind, found.axes, found.group) == ("all-reduce", ("data",), (0, 4))
    # Of two slices each sends as much as the array is large.
    assert (found.count, found.bytes, found.sent_bytes) == (1, 2048, 2048)
