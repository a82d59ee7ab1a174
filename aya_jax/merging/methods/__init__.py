"""Merge methods: pure functions of one tensor of each model, in float32."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.errors import AyaError, nearest
from aya_jax.merging.methods import combine
from aya_jax.merging.methods import differences as kept
from aya_jax.merging.methods.kinds import Block, Held, Method, Settings, Tensor


def _task(**rest: Any) -> Method:
    options = frozenset({"scale", "normalize"})
    return Method(needs_base=True, **{"options": options, **rest})


def _sparse(stays: kept.Kept, *more: str, elect: bool, **rest: Any) -> Method:
    options = frozenset({"density", "scale", "normalize", *more})
    apply = partial(kept.differences, kept=stays, elect=elect)
    return _task(apply=apply, options=options, by_place="rescale" in options, **rest)


# Sums are the same to the last bit only in one order.
_PRODUCTS: dict[str, Any] = {"measure": combine.inner_products, "by_place": True}
_SPHERICAL: dict[str, Any] = {**_PRODUCTS, "sums_to_one": True}

METHODS: dict[str, Method] = {
    "linear": Method(combine.linear, sums_to_one=True, options=frozenset({"normalize"})),
    "slerp": Method(combine.slerp, models=(2, 2), **_SPHERICAL),
    "nuslerp": Method(combine.nuslerp, needs_base=None, models=(2, 2), **_PRODUCTS),
    "karcher": Method(combine.karcher, options=frozenset({"max_iter", "tol"}), **_SPHERICAL),
    "task_arithmetic": _task(apply=combine.task_arithmetic),
    "ties": _sparse(kept.by_rank, measure=kept.largest, elect=True, normalize=True),
    "dare_linear": _sparse(kept.drawn, "rescale", elect=False),
    "dare_ties": _sparse(kept.drawn, "rescale", elect=True),
    "della_linear": _sparse(kept.by_magnitude, "epsilon", "rescale", elect=False, by_row=True),
    "della": _sparse(
        kept.by_magnitude, "epsilon", "rescale", elect=True, by_row=True, normalize=True
    ),
    "breadcrumbs": _sparse(kept.by_rank, "gamma", measure=kept.middling, elect=False),
    "breadcrumbs_ties": _sparse(kept.by_rank, "gamma", measure=kept.middling, elect=True),
    "model_stock": Method(combine.model_stock, needs_base=True, models=(2, None), **_PRODUCTS),
}


def method_of(name: str) -> Method:
    """Return a method by its name.

    Raises:
      AyaError: there is none of that name.
    """
    if name not in METHODS:
        raise AyaError(f"merge: unknown method {name!r}{nearest(name, METHODS)}")
    return METHODS[name]


def require_settings(name: str, s: Settings, *, base: bool) -> None:
    """Raise `AyaError` unless a method can do with its settings, one of each a model where they are a model's."""
    method, count = method_of(name), len(s.weights)
    least, most = method.models
    if count < least or (most is not None and count > most):
        number = f"{least}" if most == least else f"at least {least}"
        raise AyaError(f"merge: {name!r} takes {number} models, not {count}")
    if method.needs_base and not base:
        raise AyaError(f"merge: method {name!r} needs a base model; give --base")
    if not all(map(math.isfinite, s.weights)):
        raise AyaError(f"merge: the weights {s.weights} must be finite numbers")
    total = math.fsum(s.weights)
    if method.sums_to_one and not s.normalize and not combine.is_one(total):
        raise AyaError(
            f"merge: the weights of {name!r} sum to {total:g}; they must sum to 1, or be asked to be "
            "divided by their sum (normalize)"
        )
    if "density" not in method.options:
        return
    for density in s.density:
        if not 0.0 < density <= 1.0:
            raise AyaError(f"merge: density {density:g} must be above 0 and at most 1")
    for gamma in s.gamma if "gamma" in method.options else ():
        if not 0.0 <= gamma < 1.0:
            raise AyaError(f"merge: gamma {gamma:g} must be at least 0 and below 1")
    if "epsilon" in method.options:
        for density, epsilon in zip(s.density, s.epsilon, strict=True):
            if density < 1.0 and not (
                epsilon >= 0.0 < density - epsilon and density + epsilon < 1.0
            ):
                raise AyaError(
                    f"merge: epsilon {epsilon:g} must leave density {density:g} - epsilon above 0 and "
                    "density + epsilon below 1"
                )


def merge_tensor(
    name: str,
    settings: Settings,
    tensor: Tensor,
    leaves: Sequence[Any],
    base: Any = None,
    *,
    seed: int = 0,
) -> jax.Array:
    """Return the merge of a tensor that memory holds, float32 in the shape of `leaves`.

    Args:
      name: of the method.
      settings: of this tensor; see `require_settings`.
      tensor: which it is.
      leaves: it in each model, arrays of one shape, in our layout.
      base: it in the base model.
      seed: of what is drawn.
    """
    method, shape = METHODS[name], np.shape(leaves[0])
    whole = Block(
        tuple(np.asarray(leaf).reshape(-1) for leaf in leaves),
        None if base is None else np.asarray(base).reshape(-1),
    )

    measured = method.measure(settings, tensor, Held(whole)) if method.measure else None
    return jnp.reshape(method.apply(settings, tensor, seed, measured, whole), shape)
