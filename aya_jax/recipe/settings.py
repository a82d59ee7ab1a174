"""gin: reading configurations with plain errors, and the settings a stage will really get."""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from pprint import pformat
from textwrap import indent
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import gin
from gin import config as gin_config

from aya_jax.errors import AyaError, nearest

ROOT = Path(__file__).resolve().parents[2]

# gin would also look for a file among Python's packages, and tell on stderr that it is not there.
del gin_config._FILE_READERS[1:]


def parse_gin(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Read gin files, then single bindings over them.

    Args:
      files: paths; `include` statements in them are looked up beside the current folder and in the
        project's own folder.
      bindings: such as `offline_dpo/train.learning_rate = 1e-4`.

    Raises:
      AyaError: a file is missing, a line is no gin, a name is misspelt (it names the nearest), a
        macro has no value, or a value is of a wrong type.
    """
    gin.add_config_file_search_path(str(ROOT))
    for file in files:
        found = [Path(place, file) for place in (".", ROOT) if Path(place, file).is_file()]
        if not found:
            raise AyaError(f"{file}: no such gin file; check the path")
        try:
            found[0].read_text("utf-8")
        except (OSError, ValueError) as error:
            raise AyaError(f"{file}: cannot be read ({error}); save it as UTF-8") from None
    with gin.unlock_config():
        try:
            gin.parse_config_files_and_bindings(list(files), list(bindings), finalize_config=False)
            _check_macros()
            _check_types()
        except AyaError:
            raise
        # gin raises many kinds; each one is about what the user wrote.
        except Exception as error:
            raise AyaError(_explain(error)) from None


def _check_macros() -> None:
    """Raise `AyaError` for a `%NAME` that nothing sets; gin itself notices only at its use."""
    known = {scope for scope, selector in gin_config._CONFIG if selector == "gin.macro"}
    for (scope, selector), bound in gin_config._CONFIG.items():
        for parameter, value in bound.items():
            for reference in gin_config.iterate_references({parameter: value}):
                name, kind = reference.config_key
                if kind == "gin.macro" and name not in known:
                    where = _written(scope, selector, parameter)
                    raise AyaError(f"gin: {where}: nothing sets %{name}{nearest(name, known)}")


def _check_types() -> None:
    """Raise `AyaError` for a plain value that its parameter's annotation does not allow."""
    for (scope, selector), bound in gin_config._CONFIG.items():
        if selector.startswith("gin."):
            continue
        hints = get_type_hints(inspect.unwrap(gin_config._REGISTRY[selector].wrapped))
        for parameter, value in bound.items():
            hint = hints.get(parameter, Any)
            if not _allowed(value, hint):
                where = _written(scope, selector, parameter)
                wanted = inspect.formatannotation(hint).replace("collections.abc.", "")
                raise AyaError(f"gin: {where} = {value!r}: must be {wanted}")


def _written(scope: str, selector: str, parameter: str) -> str:
    """Return a binding's name as it is written in a gin file."""
    return f"{scope + '/' if scope else ''}{_short(selector)}.{parameter}"


def _allowed(value: Any, hint: Any) -> bool:
    """Whether a value fits a type; what is not a plain value or a plain type always does."""
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return any(_allowed(value, option) for option in get_args(hint))
    kind = get_origin(hint) or hint
    if isinstance(value, gin_config.ConfigurableReference) or not isinstance(kind, type):
        return True
    if kind is float:
        kind = (int, float)
    if kind in (int, (int, float)) and isinstance(value, bool):
        return False
    if isinstance(value, str) and kind is Sequence:
        return False
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    return not isinstance(value, plain) or isinstance(value, kind)


def config_text() -> str:
    """Return all that was read, as gin's own text; read back, it is the same configuration.

    `gin.config_str` sorts the keys of a dict, but the order of clusters, say, is that of their weights.
    """
    macros, bindings = [], []
    for (scope, selector), bound in sorted(gin_config._CONFIG.items()):
        for parameter, value in sorted(bound.items()):
            text = pformat(value, width=96, sort_dicts=False)
            if "\n" in text:
                text = "\\\n" + indent(text, "    ")
            if selector == "gin.macro":
                macros.append(f"{scope} = {text}\n")
            else:
                bindings.append(f"{_written(scope, selector, parameter)} = {text}\n")
    return "".join([*macros, "\n", *bindings])


def check_scopes(scopes: Iterable[str]) -> None:
    """Raise `AyaError` for a binding under a scope that does not exist; gin itself takes any.

    gin applies a binding where its scope begins the stage's: `sft` is one of `sft/western`, and
    `western` alone is none.
    """
    paths = [tuple(scope.split("/")) for scope in scopes if scope]
    known = {path[: depth + 1] for path in paths for depth in range(len(path))}
    for (scope, selector), bound in gin_config._CONFIG.items():
        if not scope or selector == "gin.macro":
            continue
        parts = tuple(scope.split("/"))
        for depth, part in enumerate(parts):
            if parts[: depth + 1] not in known:
                name = _written(scope, selector, next(iter(bound), ""))
                options = {path[-1] for path in known if path[:-1] == parts[:depth]}
                raise AyaError(f"gin: unknown scope '{part}' in '{name}'{nearest(part, options)}")


def _short(selector: str) -> str:
    """Return the name as it is written in a gin file: with its module only where it has a short one."""
    module, _, name = selector.rpartition(".")
    return selector if module in ("atlas", "source") else name


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    names: set[str] = set()
    unknown = re.search(r"No configurable matching '([^']+)'", text)
    if unknown:
        names = {name.rsplit(".", 1)[-1] for name, _ in gin_config._REGISTRY.items()}
        problem = f"nothing is called '{unknown[1]}'{nearest(unknown[1].split('.')[-1], names)}"
        return f"gin: {problem}{_where(text)}"
    unknown = re.search(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'", text)
    if unknown:
        target = gin_config._REGISTRY.get_match(unknown[1])
        names = set(inspect.signature(target.wrapped).parameters)
        problem = f"'{unknown[1]}' has no parameter '{unknown[2]}'{nearest(unknown[2], names)}"
        return f"gin: {problem}{_where(text)}"
    return f"gin: {text[:300]}"


def _where(text: str) -> str:
    place = re.search(r'In (file "[^"]+", line \d+|bindings string line \d+)', text)
    return f" ({place[1]})" if place else ""


def effective_settings(configurables: Iterable[Callable[..., Any]], scope: str) -> dict[str, Any]:
    """Return what each configurable will get under `scope`: its defaults under gin's bindings.

    Keys are `name.parameter`, values JSON-able. Arguments without a default are not settings, nor are
    those that gin may not set.
    """
    settings = {}
    with gin.config_scope(scope or None):
        for configurable in configurables:
            entry = gin_config._INVERSE_REGISTRY[_unwrapped(configurable)]
            name, hidden = entry.selector, entry.denylist or ()
            parameters = inspect.signature(_unwrapped(configurable)).parameters.values()
            defaults = {
                p.name: p.default
                for p in parameters
                if p.default is not p.empty and p.name not in hidden
            }
            bound = gin.get_bindings(configurable, resolve_references=True, inherit_scopes=True)
            for parameter, value in sorted({**defaults, **bound}.items()):
                if value is not gin.REQUIRED and not callable(value):
                    settings[f"{_short(name)}.{parameter}"] = _plain(value)
    return settings


def _unwrapped(configurable: Callable[..., Any]) -> Callable[..., Any]:
    return inspect.unwrap(configurable)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
