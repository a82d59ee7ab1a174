"""The common part of mergekit's YAML files, which run unchanged.

Source: mergekit's README and `config.py` (https://github.com/arcee-ai/mergekit).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from aya_jax.errors import AyaError, nearest
from aya_jax.merging.methods import METHODS, method_of
from aya_jax.merging.settings import DTYPES, MergeConfig, Slice, cases

FIELDS = {
    *("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer"),
}
# What must be as it is here.
AS_IT_IS = {"nuslerp_flatten": True, "nuslerp_row_wise": False, "filter_wise": False}
# mergekit's methods that take no weights.
UNWEIGHTED = ("slerp", "karcher", "model_stock")
# Defaults that are others than ours.
LINEAR: dict[str, Any] = {"normalize": True}
SPARSE: dict[str, Any] = {"density": 1.0}
RENAMED = {"lambda": "scale"}
# What mergekit passes over where a method has no use for it, and what changes only how it computes.
PASSED_OVER = {"weight", "t", "int8_mask"}.union(*(method.options for method in METHODS.values()))


def read_mergekit(path: str | Path) -> MergeConfig:
    """Return the merge that a YAML file asks for; its models are folders, seen from the file's.

    `models`, or `slices` that take every layer of every model once, in order. Layers of different depths in one
    slice, or a model of layers stacked anew, are refused, as are `modules` and models of the Hugging Face Hub. Known
    parameters that the method has no use for are passed over, as by mergekit.

    Raises:
      AyaError: the file cannot be read, or asks for what there is not.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise AyaError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise AyaError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise AyaError(f"{path}: must hold a mapping with merge_method and models")
    try:
        return _Reader(path).config(content)
    except AyaError as error:
        raise AyaError(f"{path}: {error}") from None


class _Reader:
    """Reads one file."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent

    def config(self, content: Mapping[str, Any]) -> MergeConfig:
        for name in content:
            if name == "chat_template":
                raise AyaError("chat_template: not supported; it is that of the tokenizer")
            if name not in FIELDS:
                raise AyaError(f"{name}: not supported{nearest(str(name), FIELDS)}")
        method = content.get("merge_method")
        if not isinstance(method, str) or method not in METHODS:
            raise AyaError(
                f"merge_method: unknown {method!r}{nearest(str(method), METHODS)}; there are "
                + ", ".join(METHODS)
            )
        if ("models" in content) == ("slices" in content):
            raise AyaError("needs either models or slices")
        base = content.get("base_model")
        base = None if base is None else self._model(base, "base_model")
        self.method = method
        defaults = LINEAR if method == "linear" else {}
        defaults = SPARSE if "density" in method_of(method).options else defaults
        shared = _before(self._parameters(content, "parameters"), defaults)
        if method == "slerp" and base is None:
            raise AyaError("base_model is missing: where slerp starts, t = 0")
        parts: list[tuple[Slice, Any, dict[str, Any]]]
        parts = [(Slice(), content["models"], {})] if "models" in content else []
        if "slices" in content:
            parts = list(self._slices(content["slices"]))
        slices, models = [], None
        for where, sources, of_slice in parts:
            named = [self._source(source, i) for i, source in enumerate(self._list(sources))]
            if "models" in content and base not in (None, *(model for model, _ in named)):
                named.append((str(base), {}))
            named = self._in_order(named, base)
            if models is not None and models != [model for model, _ in named]:
                raise AyaError("slices: each must have the same models, in the same order")
            models = [model for model, _ in named]
            own = tuple(parameters for _, parameters in named)
            slices.append(Slice(where.start, where.stop, _before(of_slice, shared), own))
            if method == "slerp" and "t" not in slices[-1].shared:
                raise AyaError("parameters: t is missing: 0 for the base_model, 1 for the other")
        vocabulary = self._vocabulary(content)
        if vocabulary == base:
            vocabulary = "base"
        config = MergeConfig(
            tuple(models or ()),
            method,
            base,
            tuple(slices),
            dtype=self._dtype(content),
            vocabulary=vocabulary,
        )
        config.check()
        return config

    def _in_order(
        self, named: list[tuple[str, dict[str, Any]]], base: str | None
    ) -> list[tuple[str, dict[str, Any]]]:
        """Return the models that are merged: the base comes first in SLERP, and is none of those that differ from it."""
        if self.method == "slerp":
            return sorted(named, key=lambda pair: pair[0] != base)
        if method_of(self.method).needs_base is False:
            return named
        return [pair for pair in named if pair[0] != base]

    def _slices(self, slices: Any) -> Any:
        last = 0
        for number, each in enumerate(self._list(slices)):
            where = f"slices[{number}]"
            if not isinstance(each, dict) or set(each) - {"sources", "parameters"}:
                raise AyaError(f"{where}: must have sources, and may have parameters")
            ranges = []
            for source in self._list(each.get("sources")):
                bounds = source.get("layer_range") if isinstance(source, dict) else None
                if not isinstance(bounds, Sequence) or [type(b) for b in bounds] != [int, int]:
                    raise AyaError(f"{where}: each source must have a layer_range of two numbers")
                ranges.append(tuple(bounds))
            first, stop = ranges[0] if ranges else (0, 0)
            if set(ranges) != {(first, stop)} or first != last or stop <= first:
                raise AyaError(
                    f"{where}: layer_range must be [{last}, ...] and the same for all of its sources; "
                    "layers are not stacked anew here"
                )
            last = stop
            yield Slice(first, stop), each["sources"], self._parameters(each, where)

    def _list(self, value: Any) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise AyaError(f"{value!r} must be a list of models")
        return value

    def _source(self, source: Any, number: int) -> tuple[str, dict[str, Any]]:
        if not isinstance(source, dict) or set(source) - {"model", "parameters", "layer_range"}:
            raise AyaError(f"models[{number}]: must have a model, and may have parameters")
        model = self._model(source.get("model"), f"models[{number}].model")
        return model, self._parameters(source, model)

    def _model(self, model: Any, where: str) -> str:
        if isinstance(model, dict) and set(model) <= {"model", "path"}:
            model = model.get("model", model)
            model = model.get("path") if isinstance(model, dict) else model
        if not isinstance(model, str):
            raise AyaError(f"{where}: {model!r} must be a folder")
        place = self.folder / Path(model).expanduser()
        if not place.is_dir():
            raise AyaError(
                f"{where}: {place} is no folder; models of the Hub must be downloaded first, and LoRA "
                "adapters merged into theirs with `aya merge --adapter`"
            )
        return str(place)

    def _parameters(self, content: Mapping[str, Any], where: str) -> dict[str, Any]:
        given = content.get("parameters") or {}
        if not isinstance(given, dict):
            raise AyaError(f"{where}: parameters must be a mapping")
        method = method_of(self.method)
        used = method.options | ({"t"} if self.method == "slerp" else set())
        used |= set() if self.method in UNWEIGHTED else {"weight"}
        must = dict(AS_IT_IS)
        if "rescale" not in used and method.needs_base:
            must["rescale"] = False
        found = {}
        for name, value in given.items():
            if name in must and value is not must[name]:
                raise AyaError(f"{where}: {name} can only be {str(must[name]).lower()}")
            ours = RENAMED.get(str(name), str(name))
            if ours in used or (name not in must and ours not in PASSED_OVER):
                found[ours] = _numbers(value)
        return found

    def _dtype(self, content: Mapping[str, Any]) -> str | None:
        # What it computes in counts nothing: that is always float32.
        dtype = content.get("out_dtype") or content.get("dtype")
        if dtype is not None and dtype not in DTYPES:
            raise AyaError(f"dtype: {dtype!r} is none of {', '.join(DTYPES)}")
        return dtype

    def _vocabulary(self, content: Mapping[str, Any]) -> str:
        source = content.get("tokenizer_source")
        told = content.get("tokenizer")
        if told is not None:
            if source is not None or not isinstance(told, dict) or set(told) - {"source"}:
                raise AyaError("tokenizer: only its source can be given")
            source = told.get("source", "union")
        if source in (None, "base", "union"):
            return source or "refuse"
        return self._model(source, "tokenizer_source")


def _numbers(value: Any) -> Any:
    """Return a parameter with numbers for texts such as `1e-3`, which YAML 1.1 takes for no number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    if isinstance(value, dict) and "value" in value:
        return {**value, "value": _numbers(value["value"])}
    return value


def _before(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters of which `first` has the first word, and `then` where no filter of it applies."""
    joined = {**then, **first}
    for name in first.keys() & then.keys():
        found = [*cases(first[name], name), *cases(then[name], name)]
        joined[name] = [{"filter": case.filter, "value": list(case.anchors)} for case in found]
    return joined
