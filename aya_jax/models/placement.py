"""Where the arrays of a kernel are, said to it in its own words."""

import math

from aya_jax.sharding.place import current_place
from aya_kernels import Placement


def placement(rows: int) -> Placement | None:
    """Return the mesh and the axes that kernels' arrays are split over; None on one device.

    Args:
      rows: of the batch. Where micro-batches have too few for all of the batch's axes, the last of
        these are left out, and what they would split is computed on each of their devices.
    """
    place = current_place()
    if place is None:
        return None
    batch = place.axes("batch")
    while rows % math.prod(place.mesh.shape[axis] for axis in batch):
        batch = batch[:-1]
    columns = place.axes("embed")
    return Placement(
        place.mesh,
        batch=batch,
        heads=place.axes("heads"),
        sequence=place.axes("length"),
        vocabulary=place.axes("vocab"),
        columns=columns if set(columns) <= set(batch) else (),
    )
