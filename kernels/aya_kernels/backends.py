"""How an operation chooses its backend, for the chip at hand or for one that is only compiled for."""

import os
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
    it cannot compute this request there, in a line, or returns None. `untried` kernels have been
    compiled and checked interpreted, but have not run on their chip yet: they are never chosen unless
    named.
    """

    run: Callable[..., Any]
    platform: str | None = None
    refuses: Callable[..., str | None] = lambda target, *request: None
    untried: bool = False

    def why_not(self, target: Target, *request: Any) -> str | None:
        """Return why this backend cannot compute the request on `target`, or None if it can."""
        if self.platform not in (None, target.platform) and target.platform != "cpu":
            return f"it is written for {self.platform} and this is {target}"
        return self.refuses(target, *request)

    def only_if_named(self, target: Target) -> str | None:
        """Return why this backend, though it can, is not chosen on `target` unless it is named."""
        if self.platform is not None and target.platform == "cpu":
            return f"it is written for {self.platform}; on a CPU it runs interpreted, if named"
        if self.untried:
            return f"it has not run on a real {target.platform} device yet; it runs if named"
        return None


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


# Names backends for a whole process: `AYA_KERNELS=attention=triton,decode_attention=xla`.
CHOICES = "AYA_KERNELS"

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


def named_for_process(operation: str) -> str | None:
    """Return the backend that the environment variable AYA_KERNELS names for an operation, if any.

    Raises:
      ValueError: the variable is not `operation=backend` pairs with commas between them.
    """
    pairs = [pair.partition("=") for pair in os.environ.get(CHOICES, "").split(",") if pair.strip()]
    for key, _, name in pairs:
        if not name:
            raise ValueError(f"{CHOICES}: {key!r} names no backend; write {key.strip()}=NAME")
    return {key.strip(): name.strip() for key, _, name in pairs}.get(operation)


def explain_choice(
    operation: str, backends: Mapping[str, Backend], name: str | None, *request: Any
) -> Explanation:
    """Return which of `backends`, given in order of preference, computes the request.

    Where `name` is None, it is the one that AYA_KERNELS names, or else the first that can.

    Raises:
      ValueError: there is no backend of that name, or it cannot compute the request here; nothing
        else is ever used in its place.
    """
    here = current_target()
    name = name or named_for_process(operation)
    refusals = {key: backend.why_not(here, *request) for key, backend in backends.items()}
    if name is not None:
        if name not in backends:
            raise ValueError(f"{operation}: no backend {name!r}; there are {sorted(backends)}")
        if refusals[name] is not None:
            raise ValueError(
                f"{operation}: the backend {name!r} cannot run: {refusals[name]}; name another or none"
            )
    offered = {
        key: refusals[key] or backend.only_if_named(here) for key, backend in backends.items()
    }
    chosen = next(key for key, reason in offered.items() if not reason) if name is None else name
    others = {
        key: reason or (f"{chosen} comes first" if name is None else f"{name} was asked for")
        for key, reason in offered.items()
        if key != chosen
    }
    return Explanation(operation, here, chosen, others)


def choose(
    operation: str, backends: Mapping[str, Backend], name: str | None, *request: Any
) -> Callable[..., Any]:
    """Return the `run` of the backend called `name`, or of the best one where `name` is None.

    Raises as `explain_choice` does.
    """
    return backends[explain_choice(operation, backends, name, *request).chosen].run
