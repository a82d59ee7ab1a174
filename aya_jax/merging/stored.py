"""The merge of models on the disk: part by part, by one process or by several together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import lcm, prod
from typing import NamedTuple

import jax
import numpy as np

from aya_jax.checkpoints.leaves import shared_out
from aya_jax.checkpoints.slices import LeafPath
from aya_jax.checkpoints.store import leaf_checksum
from aya_jax.data.files import fingerprint, told_plainly
from aya_jax.merging.journal import Journal
from aya_jax.merging.methods import METHODS, Block, Settings, Tensor
from aya_jax.merging.methods.kinds import Entries, Held, Runs
from aya_jax.merging.outputs import Output
from aya_jax.merging.reader import Part, Read, Reader, Rows, of_vocabulary
from aya_jax.merging.sources import Source
from aya_jax.merging.writer import LeafChecksums, Writer
from aya_jax.models.architecture import ModelConfig
from aya_jax.models.names import HFTensor
from aya_jax.sharding.processes import barrier, by_lead, from_all, together

# Bytes of all models in a part of a tensor.
PART = 64 << 20
# The same of a tensor that is held whole if it can be: where rows must be turned into columns (the file is then read in
# runs), and where the method looks at it more than once.
HELD = 768 << 20
# Entries that are computed with at once, from a multiple of that number on: few programs are compiled.
AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Work:
    """What is merged, and how.

    Attributes:
      sources: the models.
      base: the model that they were trained from, if the method needs it.
      method: a key of `methods.METHODS`.
      settings: the method's settings for each tensor, by its name.
      seed: of what a method draws.
      config: of the merged model; None of trees that are no model's.
      tensors: of the merged model.
      rows: of each model and, last, of the base: the row of its vocabulary that each row of the merged
        one is, int [rows], -1 where it has none; None where its rows are those of the merged one. What a
        model lacks is filled in with the base's row, or else the weighted mean of those that have it.
    """

    sources: tuple[Source, ...]
    base: Source | None
    method: str
    settings: Mapping[str, Settings]
    seed: int
    config: ModelConfig | None
    tensors: tuple[HFTensor, ...]
    rows: tuple[Rows, ...]

    @property
    def models(self) -> tuple[Source, ...]:
        """The sources and, last, the base."""
        return self.sources if self.base is None else (*self.sources, self.base)

    def entry_bytes(self, tensor: HFTensor) -> int:
        """Return the bytes of all models that one entry of a tensor takes while it is merged."""
        # What a model lacks is filled in in float32.
        filled = 4 * of_vocabulary(tensor) * any(rows is not None for rows in self.rows)
        return sum(filled + each.leaves[tensor.leaf].dtype.itemsize for each in self.models)

    def at_once(self, tensor: HFTensor) -> int:
        """Return how many entries of a tensor the method is given at once."""
        size = prod(tensor.part)
        if not METHODS[self.method].by_row:
            return min(size, AT_ONCE)
        # Its rows are those of the Hugging Face file, and columns of ours where that is transposed.
        if tensor.transpose or len(tensor.shape) == 1:
            return size
        return tensor.shape[1] * max(1, min(AT_ONCE // tensor.shape[1], tensor.shape[0]))

    def parts(self, tensor: HFTensor) -> list[Part]:
        """Return the parts that a tensor is read in.

        Each is a multiple of what is in a file, or else of what the method is given at once, and of rows of the file
        where that is not much.
        """
        size, step = prod(tensor.part), self.at_once(tensor)
        if METHODS[self.method].measure is not None and size * self.entry_bytes(tensor) <= HELD:
            return [Part(tensor, 0, size)]
        turned = any(source.is_turned(tensor) for source in self.models)
        most = (HELD if turned else PART) // self.entry_bytes(tensor)
        grain = max(source.grain(tensor) for source in self.models)
        if step < size and 1 < grain <= HELD // self.entry_bytes(tensor):
            step = grain
        elif (rows := lcm(step, prod(tensor.part[1:]))) <= 2 * most:
            step = rows
        step *= max(1, most // step)
        return [Part(tensor, start, min(start + step, size)) for start in range(0, size, step)]

    def read_as(self, tensor: HFTensor, output: Output) -> HFTensor:
        """Return a tensor with its entries in the order in which they are merged.

        That is the one of our layout; but where all files have the other one and the method does not mind, nothing is
        turned.
        """
        filed = tensor.transpose and not METHODS[self.method].by_place
        if filed and output.is_turned(tensor) and all(m.is_turned(tensor) for m in self.models):
            return tensor.as_filed()
        return tensor

    def is_apart(self, tensor: HFTensor) -> bool:
        """Whether a tensor is read more than once: what is in parts, where the method looks at it first."""
        return METHODS[self.method].measure is not None and len(self.parts(tensor)) > 1


def merge_stored(work: Work, output: Output) -> dict[str, str]:
    """Merge models into an output; return the checksums of its leaves, as `leaf_checksums` has them.

    All processes call it, and share the tensors out. What a killed merge of the same work has left there
    is gone on from.

    Raises:
      AyaError: a file of a model is damaged, the disk is full, or the place not writable.
    """
    journal = Journal(output.directory, _key(work, output))
    left = set(by_lead(lambda: _begin(journal, output)))
    output.open()
    with closing(output):
        found = _merge_into(work, output, journal, left)
    by_lead(journal.remove)
    return found


def _merge_into(work: Work, output: Output, journal: Journal, left: set[str]) -> dict[str, str]:
    done = _verified(output, journal, [each for each in work.tensors if each.name in left])
    sizes = {each.name: prod(each.part) for each in work.tensors if each.name not in done}
    own = set(shared_out(sizes)[jax.process_index()])
    checksums = LeafChecksums(output.leaves, work.tensors)
    with (
        told_plainly(output.directory),
        journal,
        Reader(work.models, work.rows) as reader,
        Writer(output, journal, checksums) as writer,
    ):
        mine = [work.read_as(each, output) for each in work.tensors if each.name in own]
        _merge(work, mine, reader, writer)
    barrier("merge")
    names = {tensor.name for tensor in work.tensors}
    by_lead(lambda: output.finish({name: s for name, s in journal.read().items() if name in names}))
    return _all_checksums(output, work.tensors, checksums)


def _key(work: Work, output: Output) -> str:
    """Return what tells this merge from any other, the same in all processes."""
    return fingerprint(
        {
            "method": work.method,
            "seed": work.seed,
            "settings": {name: repr(settings) for name, settings in work.settings.items()},
            "models": [source.fingerprint for source in work.models],
            "base": work.base is not None,
            "rows": [None if rows is None else rows.tolist() for rows in work.rows],
            "output": [type(output).__name__, sorted(map(repr, output.leaves.items()))],
        }
    )


def _begin(journal: Journal, output: Output) -> list[str]:
    """Return the tensors that a killed merge has left; make the files anew where it has left none."""
    left = sorted(journal.read())
    if not left:
        journal.remove()
        output.make()
    return left


def _verified(output: Output, journal: Journal, tensors: Sequence[HFTensor]) -> set[str]:
    """Return those of the tensors that are on the disk as the journal says; processes share them out."""
    sums = journal.read()
    own = tensors[jax.process_index() :: jax.process_count()]

    def whole() -> list[str]:
        return [each.name for each in own if output.sums(each) == sums.get(each.name)]

    return {name for names in together("merged before", whole) for name in names}


def _merge(work: Work, tensors: Sequence[HFTensor], reader: Reader, writer: Writer) -> None:
    # One after the other, so that only one of the two reads ahead.
    for tensor in (tensor for tensor in tensors if work.is_apart(tensor)):
        parts = work.parts(tensor)
        _merge_tensor(work, parts, reader, writer, partial(reader.read, parts))
    rest = [tensor for tensor in tensors if not work.is_apart(tensor)]
    reads = reader.read(part for tensor in rest for part in work.parts(tensor))
    for tensor in rest:
        parts = work.parts(tensor)
        _merge_tensor(work, parts, reader, writer, lambda: islice(reads, len(parts)))  # noqa: B023


def _merge_tensor(
    work: Work,
    parts: Sequence[Part],
    reader: Reader,
    writer: Writer,
    read: Callable[[], Iterator[Read]],
) -> None:
    """Merge a tensor; `read` gives its parts, again each time that it is called."""
    tensor, method = parts[0].tensor, METHODS[work.method]
    settings = work.settings[tensor.name]
    writer.begin(tensor)
    told = Tensor(tensor.name, tensor.shape, tensor.transpose, writer.dtype)
    entries: Entries = _Stored(work, parts, reader, read)
    measured = None
    if method.measure is not None:
        if len(parts) == 1:
            (held,) = entries.whole()
            entries = Held(held)
        measured = method.measure(settings, told, entries)
    for block in entries.whole():
        for piece in block.cut(work.at_once(tensor)):
            writer.add(np.asarray(method.apply(settings, told, work.seed, measured, piece)))


class _Stored(NamedTuple):
    """The entries of a tensor on the disk; see `Entries`."""

    work: Work
    parts: Sequence[Part]
    reader: Reader
    read: Callable[[], Iterator[Read]]

    def whole(self) -> Iterator[Block]:
        for part, each in zip(self.parts, self.read(), strict=True):
            yield _block(self.work, part, each)

    def some(self, runs: Runs) -> Block:
        tensor = self.parts[0].tensor
        return _block(self.work, Part(tensor, 0, 0), self.reader.some(tensor, runs))


def _block(work: Work, part: Part, read: Read) -> Block:
    """Return what a method is given of what was read."""
    entries = read.entries
    if any(absent is not None for absent in read.absent):
        entries = _filled(work, work.settings[part.tensor.name], read)
    models = len(work.sources)
    base = entries[models] if work.base is not None else None
    return Block(tuple(entries[:models]), base, part.start)


def _filled(work: Work, settings: Settings, read: Read) -> list[np.ndarray]:
    """Return entries, float32, in which those that a model lacks are filled in; see `Work.rows`."""
    values = [entries.astype(np.float32) for entries in read.entries]
    lacking = [np.zeros(len(values[0]), bool) if each is None else each for each in read.absent]
    places = np.flatnonzero(np.logical_or.reduce(lacking))
    models = len(work.sources)
    has = np.stack([~each[places] for each in lacking])
    there = np.stack([each[places] for each in values])
    weights = np.asarray(settings.weights)[:, None] * has[:models]
    # Where the weights of those that have it say nothing, each counts the same.
    weights = np.where(np.abs(weights.sum(0)) < 1e-8, has[:models], weights)
    total = weights.sum(0)
    fill = (weights * there[:models]).sum(0) / np.where(total == 0, 1, total)
    if work.base is not None:
        fill = np.where(has[models], there[models], fill)
    for value, each in zip(values, has, strict=True):
        value[places] = np.where(each, value[places], fill)
    return values


def _all_checksums(
    output: Output, tensors: Sequence[HFTensor], checksums: LeafChecksums
) -> dict[str, str]:
    """Return the checksums of all leaves; those that no process knows are read again, shared out."""
    known: dict[str, str] = {}
    for part in from_all("leaves", checksums.known()):
        known |= part
    rest = {
        path: leaf.nbytes for path, leaf in output.leaves.items() if "/".join(path) not in known
    }
    own = shared_out(rest)[jax.process_index()]

    def read() -> dict[str, str]:
        return {"/".join(path): _checksum(output, path, tensors) for path in own}

    for part in together("leaves again", read):
        known |= part
    return dict(sorted(known.items()))


def _checksum(output: Output, path: LeafPath, tensors: Sequence[HFTensor]) -> str:
    leaf = output.leaves[path]
    checksum = leaf_checksum(leaf.dtype, leaf.shape)
    for tensor in sorted((t for t in tensors if t.leaf == path), key=lambda tensor: tensor.index):
        size, grain = prod(tensor.part), output.grain(tensor)
        for start in range(0, size, grain):
            entries = output.read(tensor, start, min(start + grain, size))
            checksum.update(entries.view(np.uint8))
    return checksum.hexdigest()
