"""The signatures of linear_logprob and linear_statistics, and the choice of their backend."""

import jax
import jax.numpy as jnp

from aya_kernels.backends import Backend, choose
from aya_kernels.linear_logprob import mosaic_tpu, reference, triton, xla
from aya_kernels.linear_logprob.inputs import Inputs, Options, Statistics
from aya_kernels.linear_logprob.placed import on_mesh, over_tokens
from aya_kernels.linear_logprob.streamed import streamed
from aya_kernels.placement import Placement

# In order of preference.
BACKENDS = {
    "mosaic_tpu": Backend(streamed(mosaic_tpu.forward), "tpu", mosaic_tpu.refuses),
    "triton": Backend(streamed(triton.forward), "cuda", triton.refuses, untried=True),
    "xla": Backend(streamed(xla.forward)),
    "reference": Backend(reference.reference_linear_logprob, refuses=reference.refuses),
}

Axes = str | tuple[str, ...] | None


def linear_logprob(
    hidden: jax.Array,
    weight: jax.Array,
    targets: jax.Array,
    *,
    scale: float | jax.Array = 1.0,
    softcap: float | None = None,
    mask: jax.Array | None = None,
    axis_name: Axes = None,
    placement: Placement | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Log-probability of each target under `softmax(softcap(scale * hidden @ weight.T))`.

    The logits [T, V] are never made, forward or backward (but by the backend `reference`).

    Args:
      hidden: [T, D], or any shape [..., D].
      weight: [V, D], the output (or tied input) embeddings.
      targets: int32 [T] (or [...]), in [0, V); anything where the mask is False.
      scale: of the logits (Cohere's `logit_scale`); may be traced.
      softcap: `softcap * tanh(logit / softcap)` (Gemma 2, arXiv 2408.00118, section 2).
      mask: bool [T] (or [...]); where False the result and its gradients are 0, and nothing is
        computed (but in a small problem, where leaving tokens out would cost more).
      axis_name: inside `jax.shard_map`, the mesh axis or axes over which the rows of the weight are
        split, in their order. `weight` is then this device's rows and V all of them; the other
        arrays are the same on all of its devices, and so is the result.
      placement: how the arrays lie on a mesh, outside of `jax.shard_map`: then hidden is [B, L, D], and
        each device computes its tokens with its rows of the vocabulary.
      backend: by name (`aya_kernels.explain` lists them), or the best for the chip if absent.

    Returns:
      float32 [T] (or [...]). It can be differentiated by hidden, weight and scale; the gradients have
      their dtypes.

    Raises:
      ValueError: shapes that do not fit, or a backend that does not exist or cannot run here.
    """
    return linear_statistics(
        hidden,
        weight,
        targets,
        scale=scale,
        softcap=softcap,
        mask=mask,
        axis_name=axis_name,
        placement=placement,
        backend=backend,
    ).logp


def linear_statistics(
    hidden: jax.Array,
    weight: jax.Array,
    targets: jax.Array,
    *,
    scale: float | jax.Array = 1.0,
    softcap: float | None = None,
    mask: jax.Array | None = None,
    axis_name: Axes = None,
    entropy: bool = False,
    argmax: bool = False,
    placement: Placement | None = None,
    backend: str | None = None,
) -> Statistics:
    """What one pass over the vocabulary tells of each token; arguments and errors as `linear_logprob`.

    Args:
      entropy: whether to sum the entropy of the distribution, in nats, too.
      argmax: whether to find the likeliest word, the first of equals, too.

    Returns:
      `Statistics`, all [T] and 0 where the mask is False: logp and lse (the log-sum-exp of the
      scores), float32; entropy, float32, and argmax, int32, or None where not asked for. All but
      argmax can be differentiated.
    """
    o, x = request(
        hidden,
        weight,
        targets,
        scale=scale,
        softcap=softcap,
        mask=mask,
        axis_name=axis_name,
        entropy=entropy,
        argmax=argmax,
    )
    if placement is None or placement.mesh.size == 1:
        return over_tokens(choose("linear_logprob", BACKENDS, backend, o, x))(o, x)
    if placement.parts(placement.vocabulary) > 1:
        o = o._replace(axes=placement.vocabulary)
    if placement.parts(placement.columns) > 1:
        o = o._replace(columns=placement.columns)
    return on_mesh(choose("linear_logprob", BACKENDS, backend, o, x), placement)(o, x)


def request(
    hidden: jax.Array,
    weight: jax.Array,
    targets: jax.Array,
    *,
    scale: float | jax.Array = 1.0,
    softcap: float | None = None,
    mask: jax.Array | None = None,
    axis_name: Axes = None,
    entropy: bool = False,
    argmax: bool = False,
) -> tuple[Options, Inputs]:
    """Return what a backend takes, checked; arguments and errors as in `linear_statistics`."""
    if (
        weight.ndim != 2
        or hidden.shape[-1:] != weight.shape[1:]
        or hidden.shape[:-1] != targets.shape
    ):
        raise ValueError(
            f"linear_logprob: hidden {hidden.shape}, weight {weight.shape} and targets "
            f"{targets.shape} do not fit"
        )
    if mask is not None and mask.shape != targets.shape:
        raise ValueError(f"linear_logprob: mask {mask.shape} does not fit targets {targets.shape}")
    axes = () if axis_name is None else (axis_name,) if isinstance(axis_name, str) else axis_name
    if not isinstance(scale, jax.ShapeDtypeStruct):
        scale = jnp.asarray(scale, jnp.float32)
    targets = targets if targets.dtype == jnp.int32 else targets.astype(jnp.int32)
    options = Options(softcap, entropy, argmax, tuple(axes))
    return options, Inputs(hidden, weight, targets, scale, mask)
