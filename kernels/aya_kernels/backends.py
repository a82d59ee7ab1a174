"""How an operation chooses its backend, for the chip at hand or for one that is only compiled for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax


class Target(NamedTuple):
    """The chip that a program is made for.

    `platform` is `cpu`, `tpu`, `cuda` or `rocm`; `kind` what jax calls the device; `capability` the
    compute capability of a CUDA card (9.0 is Hopper), None for anything else.
    """

    platform: str
    kind: str = ""
    capability: float | None = None

    def __str__(self) -> str:
        return f"{self.platform} ({self.kind})" if self.kind else self.platform


class Backend(NamedTuple):
    """One way to compute an operation.

    `run` takes what the operation's `request` returns. `platform` is the one that a kernel is written
    for, None for any; on a CPU a kernel can run too, interpreted. `refuses(target, *request)` says why
    it cannot compute this request there, in a line, or returns None.
    """

    run: Callable[..., Any]
    platform: str | None = None
    refuses: Callable[..., str | None] = lambda target, *request: None

    def why_not(self, target: Target, *request: Any) -> str | None:
        """Return why this backend cannot compute the request on `target`, or None if it can."""
        if self.platform not in (None, target.platform) and target.platform != "cpu":
            return f"it is written for {self.platform} and this is {target}"
        return self.refuses(target, *request)

    def interpreted(self, target: Target) -> bool:
        """Return whether this backend would run interpreted, to check it and not to use it."""
        return self.platform is not None and target.platform == "cpu"


class Explanation(NamedTuple):
    """Which backend computes a call, and why each other one does not."""

    operation: str
    target: Target
    chosen: str
    others: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.operation} on {self.target}: {self.chosen}"]
        return "\n".join(
            lines + [f"  not {name}: {reason}" for name, reason in self.others.items()]
        )


_TARGET: ContextVar[Target | None] = ContextVar("target", default=None)


def current_target() -> Target:
    """Return the chip that programs are made for: that of `target`, or else the first device."""
    told = _TARGET.get()
    if told is not None:
        return told
    device = jax.devices()[0]
    if device.platform != "gpu":
        return Target(device.platform, device.device_kind)
    capability = getattr(device, "compute_capability", None)
    if capability is None or "." not in str(capability):
        return Target("rocm", device.device_kind)
    return Target("cuda", device.device_kind, float(capability))


@contextmanager
def target(platform: str, kind: str = "", capability: float | None = None) -> Iterator[None]:
    """Choose backends for a chip that need not be here, to compile or lower for it.

    It is read while a function is traced; one that was traced before keeps what it chose then.
    """
    token = _TARGET.set(Target(platform, kind, capability))
    try:
        yield
    finally:
        _TARGET.reset(token)


def interpreted() -> bool:
    """Return whether Pallas kernels have to be interpreted, as on a CPU."""
    return current_target().platform == "cpu"


def explain_choice(
    operation: str, backends: Mapping[str, Backend], name: str | None, *request: Any
) -> Explanation:
    """Return which of `backends`, given in order of preference, computes the request.

    Raises:
      ValueError: there is no backend of that name, or it cannot compute the request here; nothing
        else is ever used in its place.
    """
    here = current_target()
    refusals = {key: backend.why_not(here, *request) for key, backend in backends.items()}
    if name is not None:
        if name not in backends:
            raise ValueError(f"{operation}: no backend {name!r}; there are {sorted(backends)}")
        if refusals[name] is not None:
            raise ValueError(
                f"{operation}: the backend {name!r} cannot run: {refusals[name]}; name another or none"
            )
    able = [
        key
        for key, reason in refusals.items()
        if reason is None and not backends[key].interpreted(here)
    ]
    chosen = able[0] if name is None else name
    others = {}
    for key, reason in refusals.items():
        if key == chosen:
            continue
        if reason is None and name is not None:
            reason = f"{name} was asked for"
        elif reason is None and backends[key].interpreted(here):
            reason = f"it is written for {backends[key].platform}; on a CPU it runs interpreted, if named"
        others[key] = reason or f"{chosen} comes first"
    return Explanation(operation, here, chosen, others)


def choose(
    operation: str, backends: Mapping[str, Backend], name: str | None, *request: Any
) -> Callable[..., Any]:
    """Return the `run` of the backend called `name`, or of the best one where `name` is None.

    Raises as `explain_choice` does.
    """
    return backends[explain_choice(operation, backends, name, *request).chosen].run


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
