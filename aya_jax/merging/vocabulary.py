"""Models of different vocabularies: whose tokens the merged one has, and which row of each model is whose."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aya_jax.data.tokenizer import Tokenizer
from aya_jax.data.tokenizer_files import read_settings, tokenizer_files
from aya_jax.errors import AyaError
from aya_jax.merging.methods import method_of
from aya_jax.merging.reader import Rows
from aya_jax.merging.settings import MergeConfig
from aya_jax.merging.sources import Source


class Vocabulary(NamedTuple):
    """That of a merged model.

    Attributes:
      files: of its tokenizer, by their names; none where the models have none.
      rows: see `stored.Work.rows`; None where all models have one vocabulary.
    """

    files: Mapping[str, bytes]
    rows: tuple[Rows, ...] | None


def merged_vocabulary(
    config: MergeConfig, models: Sequence[Source], base: Source | None
) -> Vocabulary:
    """Return the vocabulary of a merge.

    Tokens are the same where their texts are. By the policy `refuse` all models must have the same ones in the same
    rows; by `base`, or the directory of one of the models, the merged model has that one's; by `union` the base's (or
    the first model's) and after them what others have added to theirs.

    Args:
      config: the merge.
      models: that are merged.
      base: what they were trained from, if it is given; passed over where neither the method nor the policy has
        use for it.

    Raises:
      AyaError: the vocabularies differ and the policy is `refuse`, there is no base, or a union would have to join
        what is not added tokens.
    """
    if method_of(config.method).needs_base is False and config.vocabulary not in ("base", "union"):
        base = None
    every = [*models, *([] if base is None else [base])]
    start = _start(config, base)
    found, sizes = [_files(source.home) for source in every], [_size(source) for source in every]
    there = [files for files in found if files]
    if not there:
        tokenizer_files(models[0].home)  # tells what is missing
    if len(set(sizes)) == 1 and all(files == there[0] for files in there):
        return Vocabulary(there[0], None)
    if len(there) < len(found):
        without = next(source.path for source, files in zip(every, found, strict=True) if not files)
        raise AyaError(f"merge: {without} has no tokenizer to tell its vocabulary by")
    tokenizers = [Tokenizer(f, str(s.path)) for f, s in zip(found, every, strict=True)]
    known = [tokenizer.ids for tokenizer in tokenizers]
    files: Mapping[str, bytes] = found[start]
    if all(each == known[start] for each in known) and len(set(sizes)) == 1:
        return Vocabulary(files, None)
    if config.vocabulary == "refuse":
        raise AyaError(
            f"merge: {_difference(every, known, sizes)}; name a vocabulary: base or union"
        )
    ids = dict(known[start])
    if config.vocabulary == "union":
        files, ids = _union(every, tokenizers, start)
    size = max(sizes[start], 1 + max(ids.values()))
    return Vocabulary(
        files, tuple(_rows(ids, size, *pair) for pair in zip(known, sizes, strict=True))
    )


def _files(path: Path) -> dict[str, bytes]:
    """Return the files of a folder's tokenizer, none where it has none."""
    try:
        return {name: Path(path, name).read_bytes() for name in tokenizer_files(path)}
    except AyaError:
        return {}


def _start(config: MergeConfig, base: Source | None) -> int:
    """Return whose tokenizer the merged one begins with."""
    if config.vocabulary in config.models:
        return config.models.index(config.vocabulary)
    if base is not None and config.vocabulary in ("base", "union"):
        return len(config.models)
    if config.vocabulary == "base":
        raise AyaError("merge: vocabulary 'base' needs a base model; give --base")
    return 0


def _size(source: Source) -> int:
    return source.leaves["embedding",].shape[0]


def _difference(
    every: Sequence[Source], known: Sequence[Mapping[str, int]], sizes: Sequence[int]
) -> str:
    first = every[0].path
    for source, ids in zip(every[1:], known[1:], strict=True):
        for token in sorted(ids.keys() | known[0].keys()):
            ours, theirs = known[0].get(token), ids.get(token)
            if ours != theirs:
                told = ["not in it" if i is None else f"row {i}" for i in (ours, theirs)]
                return (
                    f"the vocabularies of {first} and {source.path} differ: token {token!r} is "
                    f"{told[0]} against {told[1]}"
                )
    other = next(i for i, size in enumerate(sizes) if size != sizes[0])
    return f"{first} has {sizes[0]} rows of tokens, and {every[other].path} {sizes[other]}"


def _rows(ids: Mapping[str, int], size: int, own: Mapping[str, int], own_size: int) -> Rows:
    """Return int64 [size]: the row of a model that each row of the merged vocabulary is, -1 where it has none."""
    # Rows that no token has, which pad the embedding, are those of the same number.
    rows = np.arange(size)
    rows[own_size:] = -1
    taken = set(own.values())
    rows[[row for row in rows[rows >= 0].tolist() if row in taken]] = -1
    for token, row in ids.items():
        rows[row] = own.get(token, -1)
    return None if size == own_size and (rows == np.arange(size)).all() else rows


def _union(
    every: Sequence[Source], tokenizers: Sequence[Tokenizer], start: int
) -> tuple[Mapping[str, bytes], dict[str, int]]:
    """Return the files of a tokenizer that also has the tokens that others added to theirs, and all of its ids."""
    chosen = tokenizers[start]
    ids = dict(chosen.ids)
    fresh: dict[str, dict[str, Any]] = {}
    for source, tokenizer in zip(every, tokenizers, strict=True):
        added = _added(tokenizer.files)
        for token in sorted(tokenizer.ids.keys() - ids.keys(), key=tokenizer.ids.__getitem__):
            if token not in added:
                raise AyaError(
                    f"merge: {source.path} has the token {token!r} in its own vocabulary and "
                    f"{every[start].path} has not; a union joins added tokens alone: name one of the "
                    "models whose vocabulary is to be kept"
                )
            ids[token] = 1 + max(ids.values())
            fresh[token] = {"id": ids[token], **added[token]}
    return _with(chosen.files, fresh), ids


def _added(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Return what is told of the tokens that were added to a vocabulary, by their texts."""
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    told = {
        token.text: {flag: getattr(token, flag) for flag in flags}
        for token in read_settings(files).added
    }
    if "tokenizer.json" in files:
        for token in json.loads(files["tokenizer.json"]).get("added_tokens", ()):
            told[token["content"]] = {flag: bool(token.get(flag)) for flag in flags}
    return told


def _with(files: Mapping[str, bytes], fresh: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """Return the files of a tokenizer with tokens added: `id` and flags by their texts."""
    if not fresh:
        return dict(files)
    told = {name: json.loads(files[name]) for name in files if name.endswith(".json")}
    config = told["tokenizer_config.json"]
    if "tokenizer.json" in told:
        told["tokenizer.json"].setdefault("added_tokens", []).extend(
            {"content": text, **token} for text, token in fresh.items()
        )
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {
            str(token["id"]): {"content": text, **{k: v for k, v in token.items() if k != "id"}}
            for text, token in fresh.items()
        }
    elif "tokenizer.json" not in told:
        listed = told.setdefault("added_tokens.json", {})
        listed |= {text: token["id"] for text, token in fresh.items()}
    written = {
        name: (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
        for name, content in told.items()
    }
    return {**files, **written}
