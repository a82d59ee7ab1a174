"""The model directory: config.json, tokenizer files, params/ (Orbax) and lineage.json."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aya_jax.checkpoints.directories import shared_directory
from aya_jax.checkpoints.leaves import on_devices, stored_checksums
from aya_jax.checkpoints.slices import nested, open_slices
from aya_jax.checkpoints.store import leaf_checksums, read_tree, write_tree
from aya_jax.data.files import atomic_write, fingerprint
from aya_jax.data.tokenizer_files import tokenizer_files
from aya_jax.errors import AyaError
from aya_jax.sharding.processes import by_lead


def params_fingerprint(params: Any) -> str:
    """Return the sha256, in hexadecimal, over the paths, dtypes, shapes and bytes of all leaves."""
    return fingerprint(leaf_checksums(params))


def save_model(
    path: str | Path,
    *,
    config: Mapping[str, Any],
    params: Any,
    lineage: Mapping[str, Any],
    tokenizer_dir: str | Path,
    replace: bool = False,
) -> Path:
    """Write a whole model directory or none; several processes call it together.

    Args:
      path: where.
      config: the content of `config.json`.
      params: nested dict of arrays.
      lineage: what made the model (stage, method, parents, data); `params_fingerprint` is added.
      tokenizer_dir: a folder (another model directory will do) whose tokenizer is copied.
      replace: whether a directory already at `path` may be replaced.

    Raises:
      AyaError: see `shared_directory`.
    """
    path = Path(path)
    with shared_directory(path, replace=replace) as partial:
        by_lead(lambda: copy_tokenizer(tokenizer_dir, partial))
        fill_model(partial, config=config, params=params, lineage=lineage)
    return path


def copy_tokenizer(source: str | Path, directory: Path) -> None:
    """Copy the tokenizer files that one folder has into another.

    Raises:
      AyaError: `source` has no tokenizer.
    """
    for name in tokenizer_files(source):
        shutil.copyfile(Path(source, name), directory / name)


def fill_model(
    directory: Path,
    *,
    config: Mapping[str, Any],
    params: Any,
    lineage: Mapping[str, Any],
) -> None:
    """Write the files of a model, but for its tokenizer, into a folder that its caller commits.

    All processes of a run call it; each writes its own shards. Arguments as in `save_model`.

    Raises:
      AyaError: the disk is full, or the folder not writable.
    """
    write_tree(directory, "params", params)
    describe_params(directory, config=config, lineage=lineage)


def describe_params(
    directory: Path, *, config: Mapping[str, Any], lineage: Mapping[str, Any]
) -> None:
    """Write `config.json` and `lineage.json` of the parameters in a folder, which all processes read.

    Arguments as in `save_model`.

    Raises:
      AyaError: the disk is full, or the folder not writable.
    """
    # From the files, as no process has the leaves whole.
    checksums = stored_checksums(directory, "params")

    by_lead(lambda: describe_model(directory, config=config, lineage=lineage, checksums=checksums))


def describe_model(
    directory: Path,
    *,
    config: Mapping[str, Any],
    lineage: Mapping[str, Any],
    checksums: Mapping[str, str],
) -> None:
    """Write `config.json` and `lineage.json` of parameters whose leaves have the given checksums.

    Arguments as in `save_model` and as `leaf_checksums` returns.

    Raises:
      AyaError: the disk is full, or the folder not writable.
    """
    write_object(directory / "config.json", config)
    whole = {**lineage, "params_fingerprint": fingerprint(checksums)}
    write_object(directory / "lineage.json", whole)


def write_object(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file of a model directory.

    Raises:
      AyaError: the disk is full, or the place not writable.
    """
    atomic_write(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_object(path: Path, what: str = "model directory") -> dict[str, Any]:
    """Return the content of a JSON file of a folder that should be a `what`.

    Raises:
      AyaError: it is missing, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise AyaError(f"{path}: no such file; {path.parent} is no {what}") from None
    except (OSError, ValueError) as error:
        raise AyaError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise AyaError(f"{path}: must hold a JSON object")
    return content


def load_config(path: str | Path) -> dict[str, Any]:
    """Return the content of `config.json`.

    Raises:
      AyaError: it is missing, or is no JSON object.
    """
    return read_object(Path(path, "config.json"))


def load_lineage(path: str | Path) -> dict[str, Any]:
    """Return the content of `lineage.json`.

    Raises:
      AyaError: it is missing, or is no JSON object.
    """
    return read_object(Path(path, "lineage.json"))


def has_reward_head(path: str | Path) -> bool | None:
    """Whether the parameters have a scalar head, `score`; None where that cannot be told."""
    try:
        told = json.loads(Path(path, "params", "_METADATA").read_text("utf-8"))
        return "('score',)" in told["tree_metadata"]
    except (OSError, ValueError, KeyError):
        return None


def load_params(
    path: str | Path, *, dtype: Any = None, on_host: bool = False, shardings: Any = None
) -> Any:
    """Return the parameters as arrays on devices, every file checked.

    Args:
      path: the model directory.
      dtype: of the parameters but for a scalar head, `score`; as they are in the files if absent.
      on_host: as NumPy arrays.
      shardings: a tree of shardings like the parameters. Each process then reads only the slices
        that its devices hold. Without it all are on the default device.

    Raises:
      AyaError: a file is missing or damaged, or the directory is another program's, or holds other
        parameters than `shardings`.
    """
    path = Path(path)
    require_ours(path)
    if shardings is None:
        tree = read_tree(path, "params")
        kept = tree.pop("score", None)
        asarray = np.asarray if on_host else jnp.asarray
        params = jax.tree.map(lambda leaf: asarray(leaf, dtype), tree)
        return params if kept is None else {**params, "score": asarray(kept)}
    leaves = open_slices(path, "params")
    flat = {
        tuple(key.key for key in keys): s
        for keys, s in jax.tree_util.tree_leaves_with_path(shardings)
    }
    for leaf in sorted(leaves.keys() ^ flat.keys()):
        fault = "is missing" if leaf in flat else "has no place in the model"
        raise AyaError(
            f"{path}: parameter '{'/'.join(leaf)}' {fault}; config.json and params/ do not belong together"
        )
    return nested(
        {
            leaf: on_devices(store, None if leaf == ("score",) else dtype, flat[leaf])
            for leaf, store in leaves.items()
        }
    )


def require_ours(path: Path) -> None:
    """Raise `AyaError` where the parameters are there, but in a file of another format."""
    if (path / "params").exists():
        return
    if any(path.glob("*.safetensors")):
        raise AyaError(
            f"{path}: is a Hugging Face directory; make a model directory of it with `aya convert "
            f"hf-to-aya {path} OUT`"
        )
    for file in sorted(path.glob("pytorch_model*.bin")):
        raise AyaError(
            f"{file}: only safetensors are read; load the model with transformers and save it with "
            "save_pretrained"
        )
