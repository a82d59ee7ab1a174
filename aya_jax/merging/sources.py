"""The models that are merged, as they are on the disk: read in parts, tensor by tensor."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from aya_jax.checkpoints.checked import CheckedLeaves
from aya_jax.checkpoints.hugging_face import (
    HEAD,
    by_leaf,
    is_hugging_face,
    matched,
    read_entries,
)
from aya_jax.checkpoints.model_directory import load_config, load_lineage, require_ours
from aya_jax.checkpoints.safetensors import Safetensors
from aya_jax.checkpoints.slices import Leaf, LeafPath
from aya_jax.data.files import fingerprint
from aya_jax.errors import AyaError
from aya_jax.models.architecture import ModelConfig, hf_tensors, read_config
from aya_jax.models.names import HFTensor, whole


class Source(ABC):
    """A model on the disk. A context manager, which closes its files; several threads may read it.

    Attributes:
      path: the folder.
      home: the folder of its `config.json` and its tokenizer; of a step that of its training.
      config: the model's; None of a tree of parameters that is no model's, whose tensors are its leaves.
      lineage: what made it, {} where that is not told.
      leaves: dtype, shape and number of stacked axes of every leaf in our layout, by its path.
      tensors: the tensors that make up the leaves, in the order of the layers.
      fingerprint: equal while the files are; of ours it follows from their content, of a Hugging Face
        directory from the names, sizes and times of the files.
    """

    path: Path
    home: Path
    config: ModelConfig | None
    lineage: dict[str, Any]
    leaves: dict[LeafPath, Leaf]
    tensors: tuple[HFTensor, ...]
    fingerprint: str

    def is_turned(self, tensor: HFTensor) -> bool:
        """Whether the rows of a tensor are columns in the file: best read whole."""
        return False

    def grain(self, tensor: HFTensor) -> int:
        """Return how many entries of a tensor are in a file that is checked as a whole: best read together."""
        return 1

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def reward(self) -> bool:
        """Whether it has a scalar head."""
        return HEAD in self.leaves

    def read(
        self,
        tensor: HFTensor,
        start: int = 0,
        stop: int | None = None,
        *,
        room: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return entries of a tensor, in C order of `tensor.part`: of our layout, or that of the file.

        Args:
          tensor: one of `tensors`, or as `HFTensor.as_filed` has it where `is_turned`.
          start, stop: the first entry, and the one after the last; all if absent.
          room: bytes that they may be put in, uint8, at least as many as they have.

        Returns:
          [stop - start], in the dtype of the file (of its leaf, or one that it holds).

        Raises:
          AyaError: a file is damaged, or cannot be read.
        """
        return self._entries(tensor, start, prod(tensor.part) if stop is None else stop, room)

    def read_rows(self, tensor: HFTensor, rows: np.ndarray) -> np.ndarray:
        """Return rows of a matrix that is a leaf, [len(rows), columns]; a row of -1 is zeros.

        Raises:
          AyaError: as `read`.
        """
        columns = tensor.part[1]
        out = np.zeros((len(rows), columns), self.leaves[tensor.leaf].dtype)
        there = np.flatnonzero(rows >= 0)
        # Runs of rows that follow each other: most of a vocabulary is where it was.
        together = (np.diff(there) == 1) & (np.diff(rows[there]) == 1)
        for run in np.split(there, np.flatnonzero(~together) + 1):
            if len(run):
                row = int(rows[run[0]])
                entries = self.read(tensor, row * columns, (row + len(run)) * columns)
                out[run[0] : run[-1] + 1] = entries.reshape(-1, columns)
        return out

    @abstractmethod
    def _entries(
        self, tensor: HFTensor, start: int, stop: int, room: np.ndarray | None
    ) -> np.ndarray: ...

    @abstractmethod
    def close(self) -> None:
        """Close the files."""


class _Ours(Source):
    """A tree of ours: a model directory's, or that of a step of a training."""

    def __init__(self, path: Path, home: Path, config: ModelConfig | None, *, once: bool) -> None:
        require_ours(path)
        self.path, self.home, self.config = path, home, config
        told = (path / "lineage.json").is_file()
        self.lineage = load_lineage(path) if told else {}
        self._checked = CheckedLeaves(path, "params", once=once)
        self.fingerprint = self._checked.fingerprint
        shapes = {
            leaf: (store.dtype.numpy_dtype, tuple(store.shape))
            for leaf, store in self._checked.leaves.items()
        }
        self.tensors = _tensors_of(
            path, config, {leaf: shape for leaf, (_, shape) in shapes.items()}
        )
        stacked = {tensor.leaf: len(tensor.index) for tensor in self.tensors}
        self.leaves = {leaf: Leaf(*shapes[leaf], stacked[leaf]) for leaf in stacked}

    def _entries(
        self, tensor: HFTensor, start: int, stop: int, room: np.ndarray | None
    ) -> np.ndarray:
        row = prod(tensor.part[1:])
        first, last = start // row, -(-stop // row)
        rows = self._checked.read(tensor.leaf, tensor.index, first, last, room=room)
        return rows.reshape(-1)[start - first * row : stop - first * row]

    def grain(self, tensor: HFTensor) -> int:
        rows = self._checked.chunk_rows(tensor.leaf, len(tensor.index))
        return 1 if rows is None else rows * prod(tensor.part[1:])

    def close(self) -> None:
        """Nothing is open."""


def _tensors_of(
    path: Path, config: ModelConfig | None, shapes: Mapping[LeafPath, tuple[int, ...]]
) -> tuple[HFTensor, ...]:
    """Return the tensors of leaves of the given shapes.

    Raises:
      AyaError: they are not the config's.
    """
    if config is None:
        return tuple(whole("/".join(leaf), leaf, shape) for leaf, shape in sorted(shapes.items()))
    tensors = hf_tensors(config, reward=HEAD in shapes)
    wanted = {leaf: leaf_shape(members) for leaf, members in by_leaf(tensors).items()}
    for leaf in sorted(wanted.keys() | shapes.keys()):
        if shapes.get(leaf) != wanted.get(leaf):
            raise AyaError(
                f"{path}: parameter '{'/'.join(leaf)}' is {shapes.get(leaf, 'not')} there, and "
                f"{wanted.get(leaf, 'not')} by config.json; they do not belong together"
            )
    return tensors


def leaf_shape(members: Sequence[HFTensor]) -> tuple[int, ...]:
    """Return the shape of the leaf that tensors, in order, make up."""
    return (*(i + 1 for i in members[-1].index), *members[-1].part)


class _HuggingFace(Source):
    """A Hugging Face directory; its headers and the sizes of its files are checked, as nothing else can be."""

    def __init__(self, path: Path, config: ModelConfig, *, once: bool) -> None:
        self.path, self.home, self.config = path, path, config
        told = (path / "lineage.json").is_file()
        self.lineage = load_lineage(path) if told else {}
        self._files = Safetensors(path, once=once)
        try:
            members = matched(self._files, config, None)
        except BaseException:
            self._files.close()
            raise
        self.tensors = hf_tensors(config, reward=HEAD in members)
        self.leaves = {
            leaf: Leaf(self._dtype(each), leaf_shape(each), len(each[0].index))
            for leaf, each in members.items()
        }
        stats = [(file.name, file.stat()) for file in self._files.files]
        self.fingerprint = fingerprint([[n, s.st_size, s.st_mtime_ns] for n, s in stats])

    def _dtype(self, members: Sequence[HFTensor]) -> np.dtype:
        """Return the dtype that holds what all tensors of a leaf do."""
        dtypes = {self._files.tensors[tensor.name].dtype for tensor in members}
        return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)

    def _entries(
        self, tensor: HFTensor, start: int, stop: int, room: np.ndarray | None
    ) -> np.ndarray:
        return read_entries(self._files, tensor, start, stop, room=room)

    def is_turned(self, tensor: HFTensor) -> bool:
        return tensor.transpose

    def close(self) -> None:
        self._files.close()


def open_source(
    path: str | Path, config: ModelConfig | None = None, *, once: bool = False
) -> Source:
    """Open a model: a model directory, a Hugging Face directory, or a step of a training's checkpoints.

    Args:
      path: the folder; of a step `checkpoints/step_NNNNNNNN`.
      config: the model's. If absent `config.json` in the folder, or of a step in the folder of its
        training, which its checkpoints lie in. Parameters of ours without one are a tree of any shape.
      once: whether it is read about once; see `direct.File`.

    Raises:
      AyaError: there is nothing to read there, it is damaged, or not what the config says.
    """
    path = Path(path)
    if not path.is_dir():
        raise AyaError(f"{path}: no such model directory; check the path")
    home, training = path, path.absolute().parent.parent
    if path.name.startswith("step_") and not (path / "config.json").is_file():
        home = training if (training / "config.json").is_file() else path
    if config is None and (home / "config.json").is_file():
        config = read_config(load_config(home), str(home / "config.json"))
    if not is_hugging_face(path):
        return _Ours(path, home, config, once=once)
    config = config or read_config(load_config(path), str(path / "config.json"))
    return _HuggingFace(path, config, once=once)
