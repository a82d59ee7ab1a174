"""The largest arrays that a program makes, read from a text as compilers write it."""

from aya_jax.planning.compiled import largest_arrays
from aya_jax.planning.hlo import Module

TEXT = """
HloModule jit_step, is_scheduled=true

ENTRY %main (param.1: bf16[64,64]) -> bf16[64,64] {
  %param.1 = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %copy.1 = bf16[32,64]{1,0:T(8,128)(2,1)S(1)} copy(%param.1)
  %after-all.1 = token[] after-all()
  %start.1 = (f32[16,16]{1,0:T(8,128)}, dflag[2]{0}) custom-call(%param.1), custom_call_target="Start"
  ROOT %exp.1 = bf16[64,64]{1,0:T(8,128)(2,1)} exponential(%param.1)
}
"""


def test_what_is_on_the_chip_or_is_no_array_of_numbers_does_not_count():
    assert largest_arrays(Module.parse(TEXT)) == ((8192, "bf16[64,64]"), (1024, "f32[16,16]"))
