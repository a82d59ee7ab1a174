"""Where the arrays of a kernel are, said to it in its own words."""

from aya_jax.sharding.place import current_place
from aya_kernels import Placement


def placement() -> Placement | None:
    """Return the mesh and the axes that kernels' arrays are split over; None on one device."""
    place = current_place()
    if place is None:
        return None
    return Placement(
        place.mesh,
        batch=place.axes("batch"),
        heads=place.axes("heads"),
        sequence=place.axes("length"),
        vocabulary=place.axes("vocab"),
    )
