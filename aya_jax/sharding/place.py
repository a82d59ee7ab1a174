"""Where the arrays of a function that is being traced are: the mesh, and the rules of its axes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from jax.sharding import Mesh

from aya_jax.sharding.mesh import Rules, axes_of, device_mesh, logical_rules


class Place(NamedTuple):
    """A mesh and the rules by which arrays lie on it."""

    mesh: Mesh
    rules: Rules

    def axes(self, name: str) -> tuple[str, ...]:
        """Return the mesh axes that a logical axis is split over: none, one or several."""
        return axes_of(dict(self.rules)[name])


_PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


@contextmanager
def placed_on(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Tell the layers that are traced inside where their arrays are."""
    token = _PLACE.set(Place(mesh, rules))
    try:
        yield
    finally:
        _PLACE.reset(token)


def current_place() -> Place | None:
    """Return what `placed_on` told, or None where all is on one device."""
    place = _PLACE.get()
    return None if place is None or place.mesh.size == 1 else place


def gin_place() -> Place:
    """Return the place that gin describes: `device_mesh` and `logical_rules`."""
    return Place(device_mesh(), logical_rules())
