"""How an operation's arrays lie on a mesh of devices, for kernels that a compiler cannot split."""

from typing import NamedTuple

from jax.sharding import Mesh

Axes = tuple[str, ...]


class Placement(NamedTuple):
    """The mesh, and the axes of it that each axis of an operation's arrays is split over.

    `batch` splits rows (or tokens), `heads` the query and key heads, `sequence` queries and keys along
    the sequence (by ring attention), `vocabulary` the rows of an output embedding. `columns`, some of
    the axes of `batch`, split its columns, as FSDP holds it.
    """

    mesh: Mesh
    batch: Axes = ()
    heads: Axes = ()
    sequence: Axes = ()
    vocabulary: Axes = ()
    columns: Axes = ()

    def parts(self, axes: Axes) -> int:
        """Return how many parts `axes` make."""
        count = 1
        for axis in axes:
            count *= self.mesh.shape[axis]
        return count

    def indivisible(self, *split: tuple[str, int, Axes]) -> str | None:
        """Return what does not divide into its parts, in a line, or None.

        Args:
          split: the name of what is split, its length, and the axes that split it.
        """
        for name, length, axes in split:
            if length % self.parts(axes):
                return (
                    f"{length} {name} do not divide into the {self.parts(axes)} parts of the mesh "
                    f"axes {axes}"
                )
        return None
