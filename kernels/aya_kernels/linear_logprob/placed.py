"""The linear log-probability on a mesh: every device has its tokens and its rows of the vocabulary."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from aya_kernels.linear_logprob.inputs import Inputs, Options, Statistics
from aya_kernels.placement import Placement

Run = Callable[[Options, Inputs], Statistics]


def on_mesh(run: Run, place: Placement) -> Run:
    """Return a backend over arrays that are split over a mesh: tokens are [B, L] and hidden [B, L, D].

    Args:
      run: a backend of arrays on one device.
      place: `batch` and `sequence` split the tokens, `vocabulary` and `columns` the weight.

    Raises:
      ValueError: rows, places or words do not divide into the parts of the mesh.
    """

    def spread(o: Options, x: Inputs) -> Statistics:
        wrong = place.indivisible(
            ("rows", x.targets.shape[0], place.batch),
            ("places", x.targets.shape[1], place.sequence),
            ("words", x.weight.shape[0], place.vocabulary),
            ("columns", x.weight.shape[1], place.columns),
        )
        if wrong:
            raise ValueError(f"linear_logprob: {wrong}")
        tokens = PartitionSpec(place.batch, place.sequence)
        specs: dict[str, Any] = {
            "hidden": tokens,
            "weight": PartitionSpec(place.vocabulary, place.columns),
            "targets": tokens,
            "scale": PartitionSpec(),
            "mask": None if x.mask is None else tokens,
        }
        return jax.shard_map(
            lambda x: over_tokens(run)(o, x),
            mesh=place.mesh,
            in_specs=(Inputs(**specs),),
            out_specs=tokens,
            check_vma=False,
        )(x)

    return spread


def over_tokens(run: Run) -> Run:
    """Return a backend whose tokens have any shape [...], and hidden [..., D]."""

    def reshaped(o: Options, x: Inputs) -> Statistics:
        shape = x.targets.shape
        flat = x._replace(
            hidden=x.hidden.reshape(-1, x.hidden.shape[-1]),
            targets=x.targets.reshape(-1),
            mask=None if x.mask is None else x.mask.reshape(-1),
        )
        return jax.tree.map(lambda a: a.reshape(shape), run(o, flat))

    return reshaped
