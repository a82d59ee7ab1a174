"""Hugging Face model directories: read onto devices, converted to ours, and made of ours.

Nothing here holds a whole model in memory but what `load_params` returns: a conversion holds one
tensor, twice.
"""

import fnmatch
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.checkpoints.model_directory import copy_tokenizer, describe_model, load_config
from aya_jax.checkpoints.safetensors import (
    BLOCK,
    INDEX,
    SINGLE,
    Range,
    Safetensors,
    in_c_order,
    write_safetensors,
)
from aya_jax.checkpoints.slices import Leaf, LeafPath, nested, open_slices, write_slices
from aya_jax.checkpoints.store import RESERVE, leaf_checksum
from aya_jax.data.files import atomic_directory, atomic_write, fingerprint_file, require_space
from aya_jax.errors import AyaError
from aya_jax.models.architecture import ModelConfig, hf_tensors, read_config
from aya_jax.models.names import HFTensor

# The scalar head of a reward model keeps its dtype whatever the others get.
HEAD, HEAD_NAME = ("score",), "score.weight"
# Of a tied model, what some files repeat: it must be the embedding once more.
REPEATED = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Constants that old versions of transformers wrote among the weights.
BUFFERS = ("*.rotary_emb.inv_freq", "*.masked_bias")
# Rows of a file that are read and turned into columns of ours at once: they stay near the processor meanwhile.
TURNED = 16

Progress = Callable[[int, int], None]


def is_hugging_face(path: str | Path) -> bool:
    """Whether a directory has safetensors, and so is not one of ours."""
    return any(Path(path, name).is_file() for name in (SINGLE, INDEX))


def has_reward_head(path: str | Path) -> bool:
    """Whether a Hugging Face directory has a scalar head.

    Raises:
      AyaError: a file is missing or damaged; see `Safetensors`.
    """
    with Safetensors(path) as files:
        return HEAD_NAME in files.tensors


def load_params(
    path: str | Path,
    config: ModelConfig,
    *,
    dtype: Any = None,
    reward: bool | None = None,
    shardings: Any = None,
    on_host: bool = False,
) -> Any:
    """Return the parameters of a Hugging Face directory as arrays on devices.

    Args:
      path: the directory.
      config: of its `config.json`.
      dtype: of the parameters but for a scalar head; as they are in the files if absent.
      reward: whether a scalar head is expected; as the files have it if absent.
      shardings: a tree of shardings like the parameters. Each process then reads only the slices
        that its devices hold. Without it all are on the default device, or
      on_host: in the host's memory, as NumPy arrays.

    Raises:
      AyaError: a file is missing or damaged, or does not hold what the config says; see
        `Safetensors`.
    """
    with Safetensors(path) as files:
        leaves = matched(files, config, reward)
        params: dict[LeafPath, Any] = {}
        for leaf, tensors in leaves.items():
            shape = _shape(tensors)
            kind = _dtype(files, leaf, tensors, dtype)
            if shardings is None:
                whole = _read(files, tensors, kind, [(0, size) for size in shape])
                params[leaf] = whole if on_host else jnp.asarray(whole)
                continue
            sharding = shardings
            for key in leaf:
                sharding = sharding[key]
            read = _reader(files, tensors, kind, shape)
            params[leaf] = jax.make_array_from_callback(shape, sharding, read)
    return nested(params)


def hf_to_aya(
    source: str | Path,
    out: str | Path,
    *,
    dtype: Any = None,
    progress: Progress | None = None,
) -> Path:
    """Make a model directory of a Hugging Face directory, whole or not at all.

    Args:
      source: the Hugging Face directory.
      out: the model directory to make.
      dtype: of the parameters, but for the scalar head; as they are in the files if absent.
      progress: is told how many leaves of how many are written.

    Raises:
      AyaError: the config asks for something that is not supported, the files are damaged or do not
        hold what the config says, `out` exists, or the disk is full.
    """
    source, out = Path(source), Path(out)
    config = _read_config(source)
    with Safetensors(source) as files, atomic_directory(out) as folder:
        leaves = matched(files, config, None)
        copy_tokenizer(source, folder)
        plan = {}
        for path, tensors in leaves.items():
            kind = _dtype(files, path, tensors, dtype)
            plan[path] = Leaf(kind, _shape(tensors), len(tensors[0].index))
        checksums = {}
        with write_slices(folder, "params", plan) as stores:
            for done, (path, tensors) in enumerate(leaves.items()):
                checksums["/".join(path)] = _copy_leaf(files, tensors, plan[path], stores[path])
                if progress is not None:
                    progress(done + 1, len(leaves))
        describe_model(
            folder,
            config=config.to_hf(reward=HEAD in leaves),
            lineage={
                "stage": "convert",
                "kind": "convert",
                "method": "hf-to-aya",
                "parents": [],
                "source": source.resolve().name,
                "files": {file.name: fingerprint_file(file) for file in files.files},
            },
            checksums=checksums,
        )
    return out


def aya_to_hf(
    source: str | Path,
    out: str | Path,
    *,
    dtype: Any = None,
    max_shard_size: int = 5_000_000_000,
    progress: Progress | None = None,
) -> Path:
    """Make a Hugging Face directory of a model directory, whole or not at all.

    Args:
      source: the model directory.
      out: the Hugging Face directory to make.
      dtype: of the tensors, but for the scalar head; that of the parameters if absent.
      max_shard_size: see `write_safetensors`.
      progress: is told how many leaves of how many are written.

    Raises:
      AyaError: the model directory is damaged or does not hold what its config says, `out` exists,
        or the disk is full.
    """
    source, out = Path(source), Path(out)
    if is_hugging_face(source):
        raise AyaError(f"{source}: is a Hugging Face directory; give one of ours")
    config = _read_config(source)
    stores = open_slices(source, "params")
    reward = HEAD in stores
    tensors = hf_tensors(config, reward=reward)
    leaves = by_leaf(tensors)
    _check_leaves(source, stores, leaves)

    def kind(leaf: LeafPath) -> np.dtype:
        own = dtype is None or leaf == HEAD
        return np.dtype(stores[leaf].dtype.numpy_dtype if own else dtype)

    told = config.to_hf(reward=reward)
    # transformers loads a model in the dtype that its config tells.
    told["dtype" if "dtype" in told else "torch_dtype"] = kind(tensors[0].leaf).name
    with atomic_directory(out) as folder:
        copy_tokenizer(source, folder)
        size = sum(kind(t.leaf).itemsize * math.prod(t.shape) for t in tensors)
        require_space(folder, size + RESERVE)
        plan = {t.name: (kind(t.leaf), t.shape) for t in tensors}
        with write_safetensors(folder, plan, max_shard_size=max_shard_size) as put:
            for done, (leaf, members) in enumerate(leaves.items()):
                for t in members:
                    part = stores[leaf][t.index].read().result()
                    put(t.name, t.from_leaf(part.astype(kind(leaf), copy=False)))
                if progress is not None:
                    progress(done + 1, len(leaves))
        atomic_write(folder / "config.json", json.dumps(told, indent=2, sort_keys=True) + "\n")
    return out


def _read_config(path: Path) -> ModelConfig:
    return read_config(load_config(path), str(path / "config.json"))


def by_leaf(tensors: Sequence[HFTensor]) -> dict[LeafPath, list[HFTensor]]:
    """Return the tensors that make up each leaf, in the order of the leaf's bytes."""
    leaves: dict[LeafPath, list[HFTensor]] = {}
    for tensor in tensors:
        leaves.setdefault(tensor.leaf, []).append(tensor)
    return {leaf: sorted(members, key=lambda t: t.index) for leaf, members in leaves.items()}


def _shape(tensors: Sequence[HFTensor]) -> tuple[int, ...]:
    """Return the shape of the leaf that tensors make up."""
    last = tensors[-1]
    return (*(i + 1 for i in last.index), *last.part)


def matched(
    files: Safetensors, config: ModelConfig, reward: bool | None
) -> dict[LeafPath, list[HFTensor]]:
    """Return the tensors of each leaf; raise `AyaError` where the files hold others."""
    reward = HEAD_NAME in files.tensors if reward is None else reward
    tensors = hf_tensors(config, reward=reward)
    expected = {tensor.name: tensor for tensor in tensors}
    there = files.tensors
    advice = "; the files and config.json do not belong together"
    missing = [name for name in expected if name not in there]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise AyaError(f"{files.directory}: tensor '{missing[0]}' is missing{more}{advice}")
    extra = [
        name
        for name in there
        if name not in expected and not any(fnmatch.fnmatch(name, each) for each in BUFFERS)
    ]
    for name in extra:
        if name not in REPEATED:
            raise AyaError(f"{there[name].file}: nothing is known of tensor '{name}'{advice}")
    for name, tensor in expected.items():
        if there[name].shape != tensor.shape:
            raise AyaError(
                f"{there[name].file}: tensor '{name}' has shape {there[name].shape}, but "
                f"config.json makes it {tensor.shape}"
            )
    embedding = tensors[0].name
    for name in extra:
        if not _equal(files, name, embedding):
            raise AyaError(
                f"{there[name].file}: tensor '{name}' is not '{embedding}', but config.json says "
                "tie_word_embeddings; set it to false there if the model is not tied"
            )
    return by_leaf(tensors)


def _equal(files: Safetensors, one: str, other: str) -> bool:
    """Whether two tensors have the same bytes."""
    a, b = files.tensors[one], files.tensors[other]
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    rows = max(1, BLOCK // (a.dtype.itemsize * a.shape[1]))
    for first in range(0, a.shape[0], rows):
        part = [(first, min(first + rows, a.shape[0])), (0, a.shape[1])]
        if files.read(one, None, part).tobytes() != files.read(other, None, part).tobytes():
            return False
    return True


def _dtype(
    files: Safetensors, leaf: LeafPath, tensors: Sequence[HFTensor], wanted: Any
) -> np.dtype:
    """Return the dtype of a leaf: what is wanted, or what all of its tensors have."""
    if wanted is not None and leaf != HEAD:
        return np.dtype(wanted)
    first = files.tensors[tensors[0].name]
    for tensor in tensors:
        other = files.tensors[tensor.name]
        if other.dtype != first.dtype:
            raise AyaError(
                f"{other.file}: tensor '{tensor.name}' is {other.dtype.name}, '{tensors[0].name}' is "
                f"{first.dtype.name}; they make up one array, '{'/'.join(leaf)}': give a dtype"
            )
    return first.dtype


def _read(
    files: Safetensors, tensors: Sequence[HFTensor], dtype: np.dtype, ranges: Sequence[Range]
) -> np.ndarray:
    """Return a part of a leaf: what each tensor adds to it is read, and no more."""
    stacked = len(tensors[0].index)
    out = np.empty([stop - start for start, stop in ranges], dtype)
    for tensor in tensors:
        place = [i - start for i, (start, _) in zip(tensor.index, ranges, strict=False)]
        if all(0 <= i < size for i, size in zip(place, out.shape, strict=False)):
            out[tuple(place)] = _read_part(files, tensor, ranges[stacked:])
    return out


def _read_part(files: Safetensors, tensor: HFTensor, ranges: Sequence[Range]) -> np.ndarray:
    """Return the part of a tensor that `tensor.to_leaf(whole)[ranges]` is."""
    part = tensor.part
    if not tensor.transpose:
        return files.read(tensor.name, part, ranges)
    # In the file the outputs, the last axes of the part, come first.
    split = next(i for i in range(len(part) + 1) if math.prod(part[:i]) == tensor.shape[1])
    array = files.read(
        tensor.name, (*part[split:], *part[:split]), (*ranges[split:], *ranges[:split])
    )
    axes = range(len(part))
    count = len(part) - split
    return array.transpose(*axes[count:], *axes[:count])


def read_entries(
    files: Safetensors, tensor: HFTensor, start: int, stop: int, *, room: np.ndarray | None = None
) -> np.ndarray:
    """Return entries of a tensor in C order of `tensor.part`, [stop - start] in the dtype of the file.

    Args:
      files: that have it.
      tensor: which it is.
      start, stop: the first entry, and the one after the last.
      room: bytes that they may be put in, uint8, at least as many as they have.

    Raises:
      AyaError: see `Safetensors.read`.
    """
    if not tensor.transpose:
        return files.read(tensor.name, [math.prod(tensor.shape)], [(start, stop)], room=room)
    # In the file it is [outputs, inputs]: our rows are columns there.
    outputs = tensor.shape[0]
    first, last = start // outputs, -(-stop // outputs)
    dtype = files.tensors[tensor.name].dtype
    rows = np.empty((last - first, outputs), dtype)
    # NumPy copies numbers of its own kinds faster than others.
    plain = rows.view(f"u{dtype.itemsize}")
    for output in range(0, outputs, TURNED):
        strip = [(output, min(output + TURNED, outputs)), (first, last)]
        columns = files.read(tensor.name, None, strip)
        plain[:, output : output + TURNED] = columns.view(plain.dtype).T
    return rows.reshape(-1)[start - first * outputs : stop - first * outputs]


def _reader(
    files: Safetensors, tensors: Sequence[HFTensor], dtype: np.dtype, shape: tuple[int, ...]
) -> Callable[[Any], np.ndarray]:
    """Return the function from slices of a leaf to their content; the same ones are read once."""

    @functools.cache
    def part(*ranges: Range) -> np.ndarray:
        return _read(files, tensors, dtype, ranges)

    def read(index: tuple[slice, ...]) -> np.ndarray:
        return part(*(each.indices(size)[:2] for each, size in zip(index, shape, strict=True)))

    return read


def _copy_leaf(files: Safetensors, tensors: Sequence[HFTensor], leaf: Leaf, store: Any) -> str:
    """Write the tensors of a leaf into its store; return the leaf's checksum."""
    checksum = leaf_checksum(leaf.dtype, leaf.shape)
    for tensor in tensors:
        part = tensor.to_leaf(files.read(tensor.name))
        rows = leaf.chunks[leaf.stacked]
        for first in range(0, len(part), rows):
            block = in_c_order(part[first : first + rows]).astype(leaf.dtype, copy=False)
            checksum.update(block.reshape(-1).view(np.uint8))
            store[(*tensor.index, slice(first, first + len(block)))].write(block).result()
    return checksum.hexdigest()


def _check_leaves(source: Path, stores: Any, leaves: dict[LeafPath, list[HFTensor]]) -> None:
    """Raise `AyaError` unless the leaves on the disk are those of the config."""
    for leaf in [*leaves, *stores]:
        name, there = "/".join(leaf), stores.get(leaf)
        if leaf not in leaves:
            raise AyaError(f"{source}: parameter '{name}' has no place in a Hugging Face directory")
        if there is None:
            raise AyaError(f"{source}: parameter '{name}', which config.json asks for, is missing")
        if tuple(there.shape) != _shape(leaves[leaf]):
            raise AyaError(
                f"{source}: parameter '{name}' has shape {tuple(there.shape)}, but config.json makes "
                f"it {_shape(leaves[leaf])}"
            )
