"""Rotary position embedding: its frequencies, stretched for long contexts, and the rotation."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.errors import AyaError, nearest

# What each type must say; all else has a default.
_REQUIRED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}


@dataclass(frozen=True)
class RopeScaling:
    """How frequencies are changed for a longer context, named as in `rope_scaling`.

    `rope_type` is linear (arXiv 2306.15595), llama3 (arXiv 2407.21783) or yarn (arXiv 2309.00071).
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def to_hf(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as `rope_scaling` has them."""
        defaults = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in asdict(self).items() if v != defaults[k]}


def read_rope(
    config: Mapping[str, Any], *, theta: float, positions: int, where: str
) -> tuple[float, RopeScaling | None]:
    """Return the base of the frequencies and their scaling, from either vintage of `config.json`.

    Args:
      config: with `rope_theta` and `rope_scaling`, or `rope_parameters`.
      theta: the base where `config` says none.
      positions: the context, `max_position_embeddings`.
      where: for the message.

    Raises:
      AyaError: another type than default, linear, llama3 and yarn, or a field it needs is missing.
    """
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(name) or {}
    if not isinstance(given, Mapping):
        raise AyaError(f"{where}: {name} must be an object, not {given!r}")
    if any(isinstance(value, Mapping) for value in given.values()):
        raise AyaError(f"{where}: {name} for each type of layer is not supported")
    for source in (config, given):
        if source.get("partial_rotary_factor", 1.0) != 1.0:
            raise AyaError(
                f"{where}: partial_rotary_factor={source['partial_rotary_factor']!r} is not "
                "supported, only 1.0"
            )
    theta = float(given.get("rope_theta") or config.get("rope_theta") or theta)
    rope_type = given.get("rope_type", given.get("type", "default"))
    if rope_type == "default":
        return theta, None
    if rope_type not in _REQUIRED:
        hint = nearest(str(rope_type), [*_REQUIRED, "default"])
        raise AyaError(f"{where}: {name}: rope_type {rope_type!r} is not supported{hint}")
    known = {f.name for f in fields(RopeScaling)}
    values = {k: v for k, v in given.items() if k in known and v is not None}
    values["rope_type"] = rope_type
    if rope_type != "linear":
        values.setdefault("original_max_position_embeddings", positions)
        if rope_type == "yarn":
            original = values["original_max_position_embeddings"]
            values.setdefault("factor", positions / original)
    missing = [field for field in _REQUIRED[rope_type] if field not in values]
    if missing:
        raise AyaError(f"{where}: {name}: rope_type {rope_type!r} needs {missing[0]!r}")
    return theta, RopeScaling(**values)


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None
) -> tuple[np.ndarray, float]:
    """Return angles per position, float64 [H / 2], and the factor of sines and cosines.

    Source: RoFormer (arXiv 2104.09864, section 3.2.2); of the scalings, see `RopeScaling` and
    transformers `modeling_rope_utils.py`.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return frequencies, 1.0
    slow = frequencies / scaling.factor
    if scaling.rope_type == "linear":
        return slow, 1.0
    original = scaling.original_max_position_embeddings
    assert original is not None
    if scaling.rope_type == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        assert low is not None and high is not None
        turns = original * frequencies / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return slow * (1 - kept) + frequencies * kept, 1.0

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension_of(scaling.beta_fast or 32), dimension_of(scaling.beta_slow or 1)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001
    slowed = np.clip((np.arange(head_dim // 2) - first) / (last - first), 0.0, 1.0)
    return slow * slowed + frequencies * (1 - slowed), _yarn_factor(scaling)


def _yarn_factor(scaling: RopeScaling) -> float:
    """Return the factor of sines and cosines (arXiv 2309.00071, equation 22)."""

    def of(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return of(scaling.mscale) / of(scaling.mscale_all_dim)
    return of(1.0)


def rope_angles(
    positions_BT: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None
) -> tuple[jax.Array, jax.Array]:
    """Return sines and cosines, float32 [B, T, 1, H / 2], of int32 positions [B, T]."""
    frequencies, factor = rope_frequencies(head_dim, theta, scaling)
    angles = positions_BT.astype(jnp.float32)[..., None, None] * frequencies.astype(np.float32)
    return jnp.sin(angles) * factor, jnp.cos(angles) * factor


def rotate(
    x_BTNH: jax.Array, sines: jax.Array, cosines: jax.Array, *, interleaved: bool
) -> jax.Array:
    """Rotate each pair of `x` by its angle, in float32; return [B, T, N, H] in the dtype of `x`.

    Source: RoFormer (arXiv 2104.09864, equation 34). Pairs are (2i, 2i + 1) where `interleaved`, as
    in GPT-J and Cohere, else (i, i + H / 2), as in GPT-NeoX and Llama.
    """
    half = x_BTNH.shape[-1] // 2
    x = x_BTNH.astype(jnp.float32)
    if interleaved:
        pairs = x.reshape(*x.shape[:-1], half, 2)
        first, second = pairs[..., 0], pairs[..., 1]
    else:
        first, second = x[..., :half], x[..., half:]
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    if interleaved:
        return jnp.stack(turned, axis=-1).reshape(x.shape).astype(x_BTNH.dtype)
    return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)
