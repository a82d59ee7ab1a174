"""How an operation chooses its backend: by name, or the first that suits the platform."""

from collections.abc import Callable, Mapping
from typing import Any


def choose_backend(
    operation: str, backends: Mapping[str, Callable[..., Any]], name: str | None, default: str
) -> Callable[..., Any]:
    """Return the backend called `name`, or the default one where `name` is None.

    Raises:
      ValueError: there is no backend of that name; nothing else is ever used in its place.
    """
    chosen = default if name is None else name
    if chosen not in backends:
        raise ValueError(f"{operation}: no backend {chosen!r}; there are {sorted(backends)}")
    return backends[chosen]
