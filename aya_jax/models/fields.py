"""What every configuration checks of its fields, and how it reads them from a `config.json`."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aya_jax.errors import AyaError, nearest

# In which weights, activations and moments are held and computed with.
DTYPES = ("float32", "bfloat16")


def require_sizes(config: Any, names: Iterable[str]) -> None:
    """Raise `AyaError` unless each of a configuration's fields is a whole number above 0."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise AyaError(f"config: {name} must be a whole number above 0, not {value!r}")


def require_numbers(config: Any, names: Iterable[str]) -> None:
    """Raise `AyaError` unless each of a configuration's fields is a number."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | float):
            raise AyaError(f"config: {name} must be a number, not {value!r}")


def require_given(config: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Raise `AyaError` unless a `config.json` says all of these fields."""
    missing = [name for name in names if config.get(name) is None]
    if missing:
        raise AyaError(f"{where}: field '{min(missing)}' is missing")


def require_dtype(setting: str, dtype: str) -> None:
    """Raise `AyaError`, which names the setting, unless a dtype is one of `DTYPES`."""
    if dtype not in DTYPES:
        raise AyaError(f"{setting}: unknown dtype {dtype!r}{nearest(str(dtype), DTYPES)}")


def given(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return a field of a `config.json`, `default` where it is absent or null."""
    value = config.get(name)
    return default if value is None else value


def hashable(value: Any) -> Any:
    """Return what JSON has as a list as a tuple, and all else as it is."""
    return tuple(value) if isinstance(value, list) else value


def jsonable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `config.json`, tuples as the lists that JSON has."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in config.items()}


def ids_of(token: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the ids of a field such as `eos_token_id`, which is one, several or none."""
    return () if token is None else (token,) if isinstance(token, int) else token


@contextmanager
def told_of(where: str) -> Iterator[None]:
    """Let what is raised of a configuration name the file that it was read from."""
    try:
        yield
    except AyaError as error:
        raise AyaError(str(error).replace("config:", f"{where}:", 1)) from None
