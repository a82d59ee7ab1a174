"""The common part of mergekit's YAML files, which run unchanged.

Source: mergekit's README and `config.py` (https://github.com/arcee-ai/mergekit).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from aya_jax.errors import AyaError, nearest
from aya_jax.merging.methods import METHODS, method_of
from aya_jax.merging.settings import DTYPES, MergeConfig, Slice

FIELDS = {
    *("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer"),
}
# What may be given, but changes nothing of what is computed here, or must be as it is here.
AS_IT_IS = {"nuslerp_flatten": True, "nuslerp_row_wise": False, "filter_wise": False}
IGNORED = ("int8_mask",)
# Defaults that are others than ours.
LINEAR: dict[str, Any] = {"normalize": True}
SPARSE: dict[str, Any] = {"density": 1.0}
RENAMED = {"lambda": "scale"}


def read_mergekit(path: str | Path) -> MergeConfig:
    """Return the merge that a YAML file asks for; its models are folders, seen from the file's.

    `models`, or `slices` that take every layer of every model once, in order. Layers of different depths in one
    slice, or a model of layers stacked anew, are refused, as are `modules` and models of the Hugging Face Hub.

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
        defaults = LINEAR if method == "linear" else {}
        defaults = SPARSE if "density" in method_of(method).options else defaults
        shared = {**defaults, **self._parameters(content, "parameters")}
        parts: list[tuple[Slice, Any, dict[str, Any]]]
        parts = [(Slice(), content["models"], {})] if "models" in content else []
        if "slices" in content:
            parts = list(self._slices(content["slices"]))
        slices, models = [], None
        for where, sources, of_slice in parts:
            named = [self._source(source, i) for i, source in enumerate(self._list(sources))]
            named = self._in_order(method, named, base)
            if models is not None and models != [model for model, _ in named]:
                raise AyaError("slices: each must have the same models, in the same order")
            models = [model for model, _ in named]
            own = tuple(parameters for _, parameters in named)
            slices.append(Slice(where.start, where.stop, {**shared, **of_slice}, own))
        if method_of(method).needs_base is False:
            base = None
        config = MergeConfig(
            tuple(models or ()),
            method,
            base,
            tuple(slices),
            dtype=self._dtype(content),
            vocabulary=self._vocabulary(content),
        )
        config.check()
        return config

    def _in_order(
        self, method: str, named: list[tuple[str, dict[str, Any]]], base: str | None
    ) -> list[tuple[str, dict[str, Any]]]:
        """Return the models that are merged: the base is none of them, but the one that SLERP starts from."""
        if method == "slerp":
            if base is None:
                raise AyaError("base_model is missing: where slerp starts, t = 0")
            return sorted(named, key=lambda pair: pair[0] != base)
        if method_of(method).needs_base is False:
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
        for name, value in given.items():
            if name in AS_IT_IS and value is not AS_IT_IS[name]:
                raise AyaError(f"{where}: {name} can only be {str(AS_IT_IS[name]).lower()}")
        left_out = {*IGNORED, *AS_IT_IS}
        return {
            RENAMED.get(str(name), str(name)): v
            for name, v in given.items()
            if name not in left_out
        }

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
