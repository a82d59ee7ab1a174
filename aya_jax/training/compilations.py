"""Exactly one compilation a program: they are counted, and a second is told with what changed."""

import inspect
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from types import TracebackType
from typing import Any

import jax

log = logging.getLogger(__name__)

# One a compilation by XLA, or a find in the persistent cache; never one for a call of what is compiled.
EVENT = "/jax/core/compile/backend_compile_duration"
# So many changed arguments are named in a warning.
NAMED = 3


class Compilations(AbstractContextManager["Compilations"]):
    """Counts the compilations of the programs that it watches, between its enter and its exit."""

    def __init__(self) -> None:
        self._programs: list[str] = []

    def watched(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """Return a jitted function that logs a warning, once, when a call compiles it again.

        Something else of the same name that is compiled by another thread meanwhile counts as well.
        """
        name = f"jit({program.__name__})"
        parameters = list(inspect.signature(program).parameters)
        seen: list[dict[str, str]] = []

        @wraps(program)
        def call(*args: Any) -> Any:
            before = len(self._programs)
            # What is donated is gone after the call, but still tells its shape and place.
            out = program(*args)
            if len(seen) < 2 and name in self._programs[before:]:
                seen.append(_describe(dict(zip(parameters, args, strict=False))))
                if len(seen) == 2:
                    log.warning("%s was compiled a second time: %s", name, _changes(*seen))
            return out

        return call

    def _heard(self, event: str, duration_secs: float, **details: Any) -> None:
        del duration_secs
        if event == EVENT:
            self._programs.append(str(details.get("fun_name")))

    def __enter__(self) -> "Compilations":
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)


def _describe(arguments: dict[str, Any]) -> dict[str, str]:
    """Return by the name of every array what a program is compiled for: type, shape, place."""
    return {
        jax.tree_util.keystr(path): _describe_array(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arguments)
    }


def _describe_array(leaf: Any) -> str:
    shaped = jax.typeof(leaf)
    place = ""
    if isinstance(leaf, jax.Array):
        spec = getattr(leaf.sharding, "spec", None)
        mesh = getattr(leaf.sharding, "mesh", None)
        where = leaf.sharding if mesh is None else f"{spec} of {dict(mesh.shape)}"
        place = f" on {where} of {leaf.sharding.memory_kind}" if leaf.committed else ""
    return f"{shaped.str_short()}{' (weak)' if shaped.weak_type else ''}{place}"


def _changes(first: dict[str, str], second: dict[str, str]) -> str:
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    if not names:
        return "its arguments are alike, so a setting of jax changed"
    told = [f"{n} {first.get(n, 'absent')} -> {second.get(n, 'absent')}" for n in names[:NAMED]]
    rest = len(names) - len(told)
    return "; ".join(told) + (f"; and {rest} more" if rest else "")
