"""How an operation's arrays lie on a mesh of devices, for kernels that a compiler cannot split."""

from typing import NamedTuple

from jax.sharding import Mesh

Axes = tuple[str, ...]


class Placement(NamedTuple):
    """The mesh, and the axes of it that each axis of an operation's arrays is split over.

    `batch` splits rows (or tokens), `heads` the query and key heads, `sequence` queries and keys along
    the sequence (by ring attention), `vocabulary` the rows of an output embedding.
    """

    mesh: Mesh
    batch: Axes = ()
    heads: Axes = ()
    sequence: Axes = ()
    vocabulary: Axes = ()

    def parts(self, axes: Axes) -> int:
        """Return how many parts `axes` make."""
        count = 1
        for axis in axes:
            count *= self.mesh.shape[axis]
        return count
