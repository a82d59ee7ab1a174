"""Rows of an embedding whose table is split over the devices, without ever gathering the table."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from aya_jax.sharding.place import current_place

Axes = tuple[str, ...]


class _Split(NamedTuple):
    """A mesh, and its axes for rows and length of the tokens, words and columns of the table."""

    mesh: Mesh
    rows: Axes
    length: Axes
    words: Axes
    columns: Axes

    def parts(self, axes: Axes) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def fits(self, table: tuple[int, ...], tokens: tuple[int, ...]) -> bool:
        """Whether all divides, and the devices that split the columns are a group of those of rows."""
        pairs = zip(
            (*tokens, *table), (self.rows, self.length, self.words, self.columns), strict=True
        )
        inner = self.rows[len(self.rows) - len(self.columns) :]
        return inner == self.columns and all(size % self.parts(axes) == 0 for size, axes in pairs)


def lookup(table_VD: jax.Array, tokens_BT: jax.Array, dtype: Any) -> jax.Array:
    """Return `table[tokens]` in `dtype`, [B, T, D].

    On a mesh each device looks up the tokens of its group in its part of the table, and the devices of
    the group exchange columns for rows; the gradient takes the same way back, and is summed in float32.

    Args:
      table_VD: with the logical axes `vocab` and `embed`.
      tokens_BT: int32, split as batches are; below V.
    """
    place = current_place()
    if place is None:
        return table_VD[tokens_BT].astype(dtype)
    split = _Split(place.mesh, *map(place.axes, ("batch", "length", "vocab", "embed")))
    if not split.fits(table_VD.shape, tokens_BT.shape):
        return table_VD[tokens_BT].astype(dtype)
    return _lookup(table_VD, tokens_BT, split, dtype)


def _local(split: _Split, function: Callable[..., Any], ins: str, out: str) -> Callable[..., Any]:
    """Return `function` of the parts that a device holds of `table`, `tokens` and `found` rows."""
    specs = {
        "table": PartitionSpec(split.words, split.columns),
        "tokens": PartitionSpec(split.rows, split.length),
        "found": PartitionSpec(split.rows, split.length, None),
    }
    return jax.shard_map(
        function,
        mesh=split.mesh,
        in_specs=tuple(specs[name] for name in ins.split()),
        out_specs=specs[out],
        check_vma=False,
    )


def _own(split: _Split, tokens: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Return the group's tokens as rows of this device's part of `count` words, and which are there."""
    if split.columns:
        tokens = jax.lax.all_gather(tokens, split.columns, axis=0, tiled=True)
    first = jnp.int32(0)
    for axis in split.words:
        first = first * split.mesh.shape[axis] + jax.lax.axis_index(axis)
    rows = tokens - first * count
    here = (rows >= 0) & (rows < count)
    return jnp.where(here, rows, 0), here


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lookup(table: jax.Array, tokens: jax.Array, split: _Split, dtype: Any) -> jax.Array:
    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        rows, here = _own(split, tokens, len(table))
        found = jnp.where(here[..., None], table[rows].astype(dtype), 0)
        if split.words:
            found = jax.lax.psum(found, split.words)
        if split.columns:
            found = jax.lax.all_to_all(found, split.columns, 0, 2, tiled=True)
        return found

    return _local(split, local, "table tokens", "found")(table, tokens)


def _lookup_forward(
    table: jax.Array, tokens: jax.Array, split: _Split, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # The table is kept for its shape alone; it is there anyway.
    return _lookup(table, tokens, split, dtype), (table, tokens)


def _lookup_backward(
    split: _Split, dtype: Any, kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, None]:
    summed = tuple(axis for axis in (*split.rows, *split.length) if axis not in split.columns)

    def local(table: jax.Array, tokens: jax.Array, g: jax.Array) -> jax.Array:
        rows, here = _own(split, tokens, len(table))
        if split.columns:
            g = jax.lax.all_to_all(g, split.columns, 2, 0, tiled=True)
        g = jnp.where(here[..., None], g, 0).astype(jnp.float32)
        grad = jnp.zeros(table.shape, jnp.float32).at[rows].add(g)
        if summed:
            grad = jax.lax.psum(grad, summed)
        return grad.astype(table.dtype)

    return _local(split, local, "table tokens found", "table")(*kept, g), None


_lookup.defvjp(_lookup_forward, _lookup_backward)
