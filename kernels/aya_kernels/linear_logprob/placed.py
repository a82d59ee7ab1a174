"""The linear log-probability on a mesh: every device has its tokens and its rows of the vocabulary."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from aya_kernels.placement import Placement

Compute = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def on_mesh(compute: Compute, place: Placement) -> Compute:
    """Return `compute(hidden, weight, targets, mask, scale)` over arrays that are split over a mesh.

    Args:
      compute: of hidden [T, D], weight [V, D], targets [T], mask [T] and scale [] to float32 [T],
        where the weight is what a device has of its rows.
      place: `batch` and `sequence` split the tokens, `vocabulary` the rows of the weight.

    Returns:
      A function of hidden [B, L, D], weight [V, D], targets [B, L], mask [B, L] and scale [] to
      float32 [B, L].

    Raises:
      ValueError: rows, places or the vocabulary do not divide into the parts of the mesh.
    """
    tokens = PartitionSpec(place.batch, place.sequence)

    def local(
        hidden: jax.Array, weight: jax.Array, targets: jax.Array, mask: jax.Array, scale: jax.Array
    ) -> jax.Array:
        rows = hidden.reshape(-1, hidden.shape[-1])
        out = compute(rows, weight, targets.reshape(-1), mask.reshape(-1), scale)
        return out.reshape(targets.shape)

    def run(
        hidden: jax.Array, weight: jax.Array, targets: jax.Array, mask: jax.Array, scale: jax.Array
    ) -> jax.Array:
        for name, length, axes in (
            ("rows", targets.shape[0], place.batch),
            ("places", targets.shape[1], place.sequence),
            ("words", weight.shape[0], place.vocabulary),
        ):
            if length % place.parts(axes):
                raise ValueError(
                    f"linear_logprob: {length} {name} do not divide into the {place.parts(axes)} parts "
                    f"of the mesh axes {axes}"
                )
        spread = jax.shard_map(
            local,
            mesh=place.mesh,
            in_specs=(tokens, PartitionSpec(place.vocabulary), tokens, tokens, PartitionSpec()),
            out_specs=tokens,
            check_vma=False,
        )
        return spread(hidden, weight, targets, mask, scale)

    return run
