"""decode_attention on a mesh: every device computes its rows and its heads."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from aya_kernels.backends import Backend, Target
from aya_kernels.decode_attention.inputs import Inputs, Options
from aya_kernels.placement import Axes, Placement


def on_mesh(backend: Backend, place: Placement) -> Backend:
    """Return a backend over arrays that are split over a mesh: rows by `batch`, heads by `heads`.

    Pages are shared by all rows, so that every device has all of them, with its own heads. The backend
    is refused where rows or key heads do not divide into the parts of the mesh.
    """

    def refuses(target: Target, o: Options, x: Inputs) -> str | None:
        split = (
            ("rows", x.q.shape[0], place.batch),
            ("key heads", x.k_cache.shape[2], place.heads),
        )
        return place.indivisible(*split) or backend.refuses(target, o, _local(x, place))

    def run(o: Options, x: Inputs) -> tuple[jax.Array, jax.Array]:
        specs, lse = _specs(x, place), PartitionSpec(place.batch, place.heads, None)
        return jax.shard_map(
            lambda x: backend.run(o, x),
            mesh=place.mesh,
            in_specs=(specs,),
            out_specs=(specs.q, lse),
            check_vma=False,
        )(x)

    return backend._replace(run=run, refuses=refuses)


def _specs(x: Inputs, place: Placement) -> Inputs:
    """Return the place of each of the inputs."""
    rows, heads = place.batch, place.heads
    cache = PartitionSpec(rows if x.page_table is None else None, None, heads, None)
    places: Any = {
        "q": PartitionSpec(rows, None, heads, None),
        "k_cache": cache,
        "v_cache": cache,
        "lengths": PartitionSpec(rows),
        "page_table": None if x.page_table is None else PartitionSpec(rows, None),
        "window": None if x.window is None else PartitionSpec(),
    }
    return Inputs(**places)


def _local(x: Inputs, place: Placement) -> Any:
    """Return the shapes that a device has."""

    def part(length: int, axes: str | Axes | None) -> int:
        # A spec tells a single axis by its name.
        return length // place.parts((axes,) if isinstance(axes, str) else axes or ())

    return jax.tree.map(
        lambda a, spec: jax.ShapeDtypeStruct(tuple(map(part, a.shape, spec)), a.dtype),
        x,
        _specs(x, place),
    )
