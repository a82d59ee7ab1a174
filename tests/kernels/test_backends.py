"""Which backend runs, and why another does not."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

import aya_kernels
from aya_kernels.backends import explain_choice
from aya_kernels.decode_attention.api import BACKENDS
from aya_kernels.decode_attention.inputs import Inputs, Options
from aya_kernels.decode_attention.placed import on_mesh

H100 = ("cuda", "NVIDIA H100 80GB HBM3", 9.0)
A100 = ("cuda", "NVIDIA A100-SXM4-80GB", 8.0)
TPU = ("tpu", "TPU v5 lite", None)

SHAPES = [
    jax.ShapeDtypeStruct((1, 128, heads, 128), jnp.bfloat16) for heads in (8, 2, 2)
]  # q, k, v


def explain(target, **options):
    with aya_kernels.target(*target):
        return aya_kernels.explain("attention", *SHAPES, **options)


def test_a_tpu_gets_the_kernel_written_for_it():
    found = explain(TPU)
    assert found.chosen == "mosaic_tpu"
    assert found.others["xla"] == "mosaic_tpu comes first"
    assert "written for cuda and this is tpu (TPU v5 lite)" in found.others["mosaic_gpu"]
    assert str(found).startswith("attention on tpu (TPU v5 lite): mosaic_tpu\n")


def test_a_cpu_gets_xla_and_is_told_that_kernels_are_interpreted():
    found = aya_kernels.explain("attention", *SHAPES)
    assert found.chosen == "xla"
    assert "on a CPU it runs interpreted, if named" in found.others["mosaic_tpu"]
    assert aya_kernels.explain("attention", *SHAPES, backend="mosaic_tpu").chosen == "mosaic_tpu"


def test_a_kernel_that_never_ran_on_its_chip_is_used_only_if_named():
    found = explain(H100)
    assert found.chosen == "xla" and "has not run on a real" in found.others["mosaic_gpu"]
    assert explain(H100, backend="mosaic_gpu").chosen == "mosaic_gpu"


def test_nor_is_it_on_a_mesh():
    place = aya_kernels.Placement(AbstractMesh((2,), ("a",)), heads=("a",))
    q, cache = jnp.zeros((1, 4, 64), jnp.bfloat16), jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    options = Options(None, 1.0)
    request = (options, Inputs(q[:, None], cache, cache, jnp.array([3]), None, None))
    spread = {name: on_mesh(one, place) if one.platform else one for name, one in BACKENDS.items()}
    with aya_kernels.target(*H100):
        assert explain_choice("decode_attention", spread, None, *request).chosen == "xla"
        assert explain_choice("decode_attention", spread, "triton", *request).chosen == "triton"


def test_what_cannot_run_is_an_error_and_no_fallback():
    with pytest.raises(ValueError, match="'mosaic_gpu' cannot run: it is written for Hopper"):
        explain(A100, backend="mosaic_gpu")
    with pytest.raises(ValueError, match="no backend 'cudnn'; there are"):
        explain(H100, backend="cudnn")
    with pytest.raises(ValueError, match="no operation 'convolution'"):
        aya_kernels.explain("convolution")


def test_the_environment_names_a_backend_for_every_call(monkeypatch):
    monkeypatch.setenv("AYA_KERNELS", "decode_attention=xla, attention=mosaic_gpu")
    assert explain(H100).chosen == "mosaic_gpu"
    assert explain(H100, backend="xla").chosen == "xla"
    with pytest.raises(ValueError, match="'mosaic_gpu' cannot run"):
        explain(A100)
    monkeypatch.setenv("AYA_KERNELS", "attention")
    with pytest.raises(ValueError, match="AYA_KERNELS: 'attention' names no backend"):
        explain(H100)


def test_every_operation_can_be_asked():
    q, cache = jnp.zeros((1, 4, 64)), jnp.zeros((1, 8, 2, 64))
    decode = aya_kernels.explain("decode_attention", q, cache, cache, jnp.array([3]))
    hidden, weight, targets = jnp.zeros((4, 8)), jnp.zeros((16, 8)), jnp.zeros(4, jnp.int32)
    logprob = aya_kernels.explain("linear_logprob", hidden, weight, targets, scale=0.5)
    assert decode.chosen == logprob.chosen == "xla"
