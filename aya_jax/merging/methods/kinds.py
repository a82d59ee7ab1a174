"""What a merge method is given, and what it is made of.

A tensor is one matrix or vector of one layer (of one expert), as a Hugging Face file has it: a method measures
norms, angles and ranks on it alone, as mergekit does. Its entries lie in C order of our layout, and come in blocks
that follow each other; what a method makes of them does not depend on where they are cut. Most methods make an entry
of the entries at its place, whatever the place is: these may come in the order of the file as well.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np


@dataclass(frozen=True)
class Settings:
    """What a method is given for one tensor, under mergekit's names.

    Attributes:
      weights: one a model.
      density: of each model's difference from the base, the share of entries that stays (TIES, DARE, DELLA,
        Breadcrumbs); 1 keeps all.
      scale: mergekit's `lambda`: the merged difference is multiplied by it.
      normalize: divide by the sum of the weights (where signs are elected, of those that agree).
      gamma: of each model, the share of largest differences that Breadcrumbs leaves out.
      epsilon: of each model, half the range of the chances with which DELLA keeps entries.
      rescale: divide what DARE and DELLA keep by the chance that it had, so that its mean stays.
      max_iter, tol: of the Karcher mean.
    """

    weights: tuple[float, ...]
    density: tuple[float, ...] = ()
    scale: float = 1.0
    normalize: bool = False
    gamma: tuple[float, ...] = ()
    epsilon: tuple[float, ...] = ()
    rescale: bool = True
    max_iter: int = 10
    tol: float = 1e-5


class Tensor(NamedTuple):
    """Which tensor: its name says what is drawn for it, its rows are what DELLA ranks in.

    Attributes:
      name: in the Hugging Face layout.
      shape: of the matrix or vector there.
      transpose: whether we keep it the other way round; see `models.names.HFTensor`.
      dtype: what its merged entries, which are reckoned in float32, are rounded to.
    """

    name: str
    shape: tuple[int, ...]
    transpose: bool = False
    dtype: Any = np.dtype(np.float32)


# Of entries that follow each other, the first and the one after the last.
Runs = Sequence[tuple[int, int]]


class Block(NamedTuple):
    """Entries of a tensor.

    Attributes:
      leaves: [n] of each model, in any dtype of floating-point numbers.
      base: [n] of the base, None where there is none.
      start: the place of the first entry in the tensor.
    """

    leaves: tuple[np.ndarray, ...]
    base: np.ndarray | None
    start: int = 0

    @property
    def stop(self) -> int:
        """The place after the last entry."""
        return self.start + len(self.leaves[0])

    def cut(self, size: int) -> Iterator["Block"]:
        """Yield blocks of at most so many entries that make up this one."""
        for first in range(0, len(self.leaves[0]), size):
            part = slice(first, first + size)
            base = None if self.base is None else self.base[part]
            yield Block(tuple(leaf[part] for leaf in self.leaves), base, self.start + first)


class Entries(Protocol):
    """The entries of a tensor, in the models and the base."""

    def whole(self) -> Iterator[Block]:
        """Go through all of them, in their order; each call does it once more."""

    def some(self, runs: Runs) -> Block:
        """Return those of some runs, one after another."""


class Held(NamedTuple):
    """The entries of a tensor that memory holds; `whole` gives `at_once` at a time, or all."""

    block: Block
    at_once: int | None = None

    def whole(self) -> Iterator[Block]:
        """See `Entries`."""
        return self.block.cut(self.at_once or max(1, len(self.block.leaves[0])))

    def some(self, runs: Runs) -> Block:
        """See `Entries`."""
        leaves, base, _ = self.block
        chosen = np.concatenate([np.arange(*run) for run in runs])
        return Block(tuple(leaf[chosen] for leaf in leaves), None if base is None else base[chosen])


@dataclass(frozen=True)
class Method:
    """A way to merge.

    Attributes:
      apply: `(settings, tensor, seed, measured, block)` -> [n] in `tensor.dtype`, the merged entries of a block.
      measure: `(settings, tensor, entries)` -> what `apply` must know of the whole tensor; None where an entry
        follows from the entries at its place alone.
      needs_base: whether it works on differences from a base model; None where it may.
      sums_to_one: whether the weights must, unless `normalize` is asked for.
      models: the least and the most, None for any number.
      options: the names of the settings, besides the weights, that it looks at.
      normalize: the default of that setting.
      by_place: whether the order of the entries counts: they come in C order of our layout.
      by_row: whether each block must hold whole rows of the tensor.
    """

    apply: Callable[[Settings, Tensor, int, Any, Block], jax.Array]
    measure: Callable[[Settings, Tensor, Entries], Any] | None = None
    needs_base: bool | None = False
    sums_to_one: bool = False
    models: tuple[int, int | None] = (1, None)
    options: frozenset[str] = frozenset()
    normalize: bool = False
    by_place: bool = False
    by_row: bool = False
