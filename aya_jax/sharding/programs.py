"""Programs that work on rows with a model's parameters, compiled for the place where these are."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from aya_jax.sharding.mesh import batch_sharding, replicated
from aya_jax.sharding.place import Place, placed_on


def compiled(
    function: Callable[[Any, Any, Any], Any], place: Place | None, params: Any
) -> Callable[[Any, Any, Any], Any]:
    """Return `function(params, rows, numbers)`, compiled; its result is whole on every device.

    Args:
      function: of parameters, of a tree of arrays whose first axis is the batch, and of a tree of
        scalars.
      place: where it runs; the default device if absent.
      params: a tree of the parameters' shardings.
    """
    if place is None:
        return jax.jit(function)
    mesh, rules = place

    def placed(params: Any, rows: Any, numbers: Any) -> Any:
        with placed_on(mesh, rules):
            return function(params, rows, numbers)

    whole = replicated(mesh)
    given = (params, batch_sharding(mesh, rules), whole)
    return jax.jit(placed, in_shardings=given, out_shardings=whole)


def on_rows(rows: Any, place: Place | None) -> Any:
    """Return NumPy arrays, equal in all processes, as arrays split along their first axis.

    Each process hands over only the rows of its own devices. The axis must divide, see `filled_up`.
    """
    if place is None:
        return rows
    sharding = batch_sharding(*place)

    def split(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(split, rows)


def filled_up(rows: int, place: Place | None) -> int:
    """Return the least number of rows that is not below `rows` and divides over the place."""
    return -(-rows // _parts(place, "batch")) * _parts(place, "batch")


def dividing_length(multiple: int, place: Place | None) -> int:
    """Return the least multiple of `multiple` into which the length of rows is split over the place."""
    return math.lcm(multiple, _parts(place, "length"))


def free(tree: Any) -> None:
    """Give back the memory of a tree's arrays, which nobody may use from then on."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            leaf.delete()


def _parts(place: Place | None, name: str) -> int:
    return 1 if place is None else math.prod(place.mesh.shape[axis] for axis in place.axes(name))
