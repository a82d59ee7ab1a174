"""What a merge is asked for, and what follows from it for each tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gin

from aya_jax.errors import AyaError, nearest
from aya_jax.merging.methods import Settings, method_of
from aya_jax.merging.outputs import FORMS

# What is given for each model, with what a model gets that is given nothing; for the whole merge these are that of all.
EACH = {"density": 0.5, "gamma": 0.01, "epsilon": 0.15}
# What is given for a whole merge.
SHARED = ("scale", "normalize", "rescale", "max_iter", "tol")
# What of these is no number.
SWITCHES = ("normalize", "rescale")
POLICIES = ("refuse", "base", "union")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Slice:
    """What is asked for some of the layers.

    Attributes:
      start, stop: the layers; None for the last.
      shared: parameters of the merge, by their names in `EACH`, `SHARED`, or `weight` or `t`.
      own: of each model, what goes before `shared`.
    """

    start: int = 0
    stop: int | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    own: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class MergeConfig:
    """One merge.

    A parameter is a number; or a gradient, a sequence of numbers that are interpolated linearly over the depth; or
    a sequence of `{"filter": ..., "value": ...}`, of which the first counts whose filter is a part of the tensor's
    name in the Hugging Face layout (without a filter: any), its value a number or a gradient. Tensors outside of the
    layers have the first number of a gradient. All of it as in mergekit.

    Attributes:
      models: directories.
      method: a key of `methods.METHODS`.
      base: the directory of what they were trained from.
      slices: what is asked for the layers, in their order.
      seed: of what a method draws.
      dtype: of the parameters; those of the first model if absent.
      form: a key of `outputs.FORMS`: `aya`, or `hugging_face` for a directory of that kind.
      vocabulary: what is done where vocabularies differ, of `POLICIES` or one of `models`; see `vocabulary.merged`.
    """

    models: tuple[str, ...]
    method: str = "linear"
    base: str | None = None
    slices: tuple[Slice, ...] = (Slice(),)
    seed: int = 0
    dtype: str | None = None
    form: str = "aya"
    vocabulary: str = "refuse"

    def settings(self, name: str, layer: int | None, layers: int) -> Settings:
        """Return the settings of a tensor.

        Args:
          name: in the Hugging Face layout.
          layer: the number of its layer, None outside of them.
          layers: how many there are in its stack.

        Raises:
          AyaError: a parameter is not what it must be; a weight (or `t`) is given, but not for this tensor; or
            the slices are not of so many layers.
        """
        where, depth = self._slice(name, layer, layers)
        method, count = method_of(self.method), len(self.models)
        own = where.own or ({},) * count

        def of(parameter: str, default: Any, model: int | None = None) -> Any:
            for given in (where.shared,) if model is None else (own[model], where.shared):
                if parameter in given:
                    value = resolved(given[parameter], name, depth, parameter)
                    if value is not None:
                        return value
            return default

        chosen: dict[str, Any] = {
            **{key: of(key, None) for key in SHARED if key in method.options},
            **{
                key: tuple(float(of(key, default, model)) for model in range(count))
                for key, default in EACH.items()
                if key in method.options
            },
        }
        chosen["normalize"] = of("normalize", method.normalize)

        def wanted(parameter: str, default: Any, model: int | None = None) -> Any:
            value = of(parameter, None, model)
            if value is None and any(parameter in given for given in (where.shared, *own)):
                whose = "" if model is None else f" of {self.models[model]}"
                raise AyaError(
                    f"merge: there is no {parameter}{whose} for {name}; give each model one, and lists of "
                    "filters a last value without a filter"
                )
            return default if value is None else value

        share = wanted("t", None)
        if share is not None:
            weights: tuple[float, ...] = (1.0 - share, share)
        else:
            weights = tuple(float(wanted("weight", 1.0 / count, i)) for i in range(count))
        return Settings(
            weights, **{key: value for key, value in chosen.items() if value is not None}
        )

    def _slice(self, name: str, layer: int | None, layers: int) -> tuple[Slice, float]:
        """Return the slice that a tensor belongs to, and its depth in it, from 0 to 1."""
        if layer is None:
            # What comes before the layers goes with the first of them.
            before = "embed" in name or name.startswith("shared")
            return self.slices[0 if before else -1], 0.0
        for each in self.slices:
            stop = layers if each.stop is None else each.stop
            if each.start <= layer < stop:
                last = stop - each.start - 1
                return each, (layer - each.start) / last if last else 1.0
        raise AyaError(f"merge: no slice has layer {layer} of the {layers} that there are")

    def check(self) -> None:
        """Raise `AyaError` where a parameter is not one of the method's, or not what it must be."""
        known = {"weight", *method_of(self.method).options} | (
            {"t"} if self.method == "slerp" else set()
        )
        for each in self.slices:
            for given in (each.shared, *each.own):
                for name, value in given.items():
                    if name not in known:
                        raise AyaError(
                            f"merge: method {self.method!r} has no {name!r}{nearest(name, known)}"
                        )
                    cases(value, name)
            if each.own and len(each.own) != len(self.models):
                raise AyaError(
                    f"merge: parameters of {len(each.own)} models for {len(self.models)}"
                )
        for what, value, there in (
            ("dtype", self.dtype or DTYPES[0], DTYPES),
            ("form", self.form, FORMS),
        ):
            if value not in there:
                raise AyaError(f"merge: unknown {what} {value!r}{nearest(value, there)}")
        if self.vocabulary not in (*POLICIES, *self.models):
            raise AyaError(
                f"merge: vocabulary {self.vocabulary!r} is none of {', '.join(POLICIES)} or one of the "
                f"models{nearest(self.vocabulary, POLICIES)}"
            )


class Case(NamedTuple):
    """What a parameter is where a filter is a part of the tensor's name (None: anywhere): anchors over the depth."""

    filter: str | None
    anchors: tuple[Any, ...]


def cases(parameter: Any, what: str) -> list[Case]:
    """Return the cases of a parameter, of which the first that applies counts.

    Args:
      parameter: see `MergeConfig`.
      what: the parameter's name, for errors.

    Raises:
      AyaError: it is none of these.
    """
    given = parameter if _is_list(parameter) else (parameter,)
    if not any(isinstance(each, Mapping) for each in given):
        return [Case(None, _anchors(given, what))]
    found = []
    for each in given:
        if not isinstance(each, Mapping) or "value" not in each or set(each) - {"filter", "value"}:
            raise AyaError(f"merge: {what}: {each!r} must have a 'value', and may have a 'filter'")
        value, pattern = each["value"], each.get("filter")
        anchors = _anchors(value if _is_list(value) else (value,), what)
        found.append(Case(None if pattern in (None, "*") else str(pattern), anchors))
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _anchors(values: Sequence[Any], what: str) -> tuple[Any, ...]:
    if not values:
        raise AyaError(f"merge: {what}: an empty list is no number; give one")
    return tuple(_checked(value, what) for value in values)


def _checked(value: Any, what: str) -> Any:
    if isinstance(value, bool) != (what in SWITCHES) or not isinstance(value, int | float):
        kind = "true or false" if what in SWITCHES else "a number"
        raise AyaError(f"merge: {what}: {value!r} must be {kind}")
    return value


def resolved(parameter: Any, name: str, depth: float, what: str) -> Any:
    """Return the value of a parameter for a tensor, None where no filter is a part of its name.

    Args:
      parameter: see `MergeConfig`.
      name: of the tensor.
      depth: of its layer, from 0 to 1.
      what: the parameter's name, for errors.

    Raises:
      AyaError: as `cases`.
    """
    for case in cases(parameter, what):
        if case.filter is None or case.filter in name:
            return _interpolated(case.anchors, depth, what)
    return None


def _interpolated(anchors: Sequence[Any], depth: float, what: str) -> Any:
    place = depth * (len(anchors) - 1)
    if what in SWITCHES:
        return anchors[int(place)]
    first = int(place)
    second = min(len(anchors) - 1, first + 1)
    share = place - first
    return (1 - share) * anchors[first] + share * anchors[second]


@gin.configurable("merge")
def merge_config(
    *,
    models: Sequence[str | Path] | None = None,
    base: str | Path | None = None,
    method: str = "linear",
    weights: Sequence[Any] | None = None,
    density: Any = None,
    gamma: Any = None,
    epsilon: Any = None,
    scale: Any = None,
    normalize: bool | None = None,
    rescale: bool | None = None,
    seed: int = 0,
    dtype: str | None = None,
    form: str = "aya",
    vocabulary: str = "refuse",
) -> MergeConfig:
    """Return what a merge is asked for.

    Args:
      models: directories: ours, of Hugging Face, or steps of a training's checkpoints.
      base: what they were trained from; the methods on differences need it.
      method: a key of `methods.METHODS`.
      weights: a parameter a model, see `MergeConfig`; equal ones if absent.
      density: a parameter of all models: the share of entries that TIES, DARE, DELLA and Breadcrumbs keep; 0.5.
      gamma, epsilon: as `density`, of Breadcrumbs (0.01) and DELLA (0.15).
      scale: what the merged difference is multiplied by, mergekit's `lambda`; 1.
      normalize, rescale: see `methods.kinds.Settings`; the defaults are the method's.
      seed, dtype, form, vocabulary: see `MergeConfig`.

    Raises:
      AyaError: there is no model, an unknown method, or a setting that it does not have.
    """
    if not models:
        raise AyaError("merge: there is no model to merge")
    if weights is not None and len(weights) != len(models):
        raise AyaError(f"merge: {len(weights)} weights for {len(models)} models; give one for each")
    given = {
        "density": density,
        "gamma": gamma,
        "epsilon": epsilon,
        "scale": scale,
        "normalize": normalize,
        "rescale": rescale,
    }
    options = method_of(method).options
    # A recipe gives one density for all of its merges.
    shared = {k: v for k, v in given.items() if v is not None and (k in options or k != "density")}
    own = tuple({"weight": each} for each in weights or ())
    config = MergeConfig(
        tuple(map(str, models)),
        method,
        None if base is None else str(base),
        (Slice(shared=shared, own=own),),
        seed,
        dtype,
        form,
        vocabulary,
    )
    config.check()
    return config
