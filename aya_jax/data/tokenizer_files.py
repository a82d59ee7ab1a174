"""The files of a tokenizer beside a model, and what they say of special tokens and the chat template."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aya_jax.data.pieces import Added
from aya_jax.errors import AyaError

# The first of these that a directory has is its tokenizer.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model")

# Every file that says something about a tokenizer.
TOKENIZER_FILES = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)

_NAMES = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

# Encoder-decoders that take a prompt as it is, such as Aya 101.
_PLAIN = ("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast")


class Settings(NamedTuple):
    """What the files beside the vocabulary say."""

    names: dict[str, str]
    added: list[Added]
    template: str | None
    ends: list[int]
    plain: bool


def tokenizer_files(directory: str | Path) -> list[str]:
    """Return the names of those of `TOKENIZER_FILES` that a directory has.

    Raises:
      AyaError: there is no vocabulary, or no `tokenizer_config.json`.
    """
    names = [name for name in TOKENIZER_FILES if Path(directory, name).is_file()]
    if not set(VOCABULARIES) & set(names):
        raise AyaError(
            f"{Path(directory, 'tokenizer.model')}: no such file, nor tokenizer.json or spiece.model; "
            f"{directory} has no tokenizer"
        )
    if "tokenizer_config.json" not in names:
        raise AyaError(
            f"{Path(directory, 'tokenizer_config.json')}: no such file; {directory} has no tokenizer"
        )
    return names


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        content = json.loads(files[name].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name}: must hold a JSON object")
    return content


def _text(token: Any) -> str | None:
    """Return the text of a token, which is written as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def read_settings(files: Mapping[str, bytes]) -> Settings:
    """Read what is said of special tokens, the chat template and the end of an answer.

    As transformers does: `special_tokens_map.json` and `added_tokens.json` of older models count where
    `tokenizer_config.json` has no `added_tokens_decoder`.

    Raises:
      ValueError, TypeError, KeyError, AttributeError: a file is damaged.
    """
    config = _json(files, "tokenizer_config.json")
    old = {} if "added_tokens_decoder" in config else _json(files, "special_tokens_map.json")
    said = {**config, **old}
    names = {name: text for name in _NAMES if (text := _text(said.get(name)))}
    more = [said.get(f"{kind}_special_tokens") or () for kind in ("additional", "extra")]
    others = [
        text
        for tokens in more
        for token in (tokens.values() if isinstance(tokens, dict) else tokens)
        if (text := _text(token))
    ]
    special = {*names.values(), *others}
    if "added_tokens_decoder" in config:
        decoder = {int(i): dict(token) for i, token in config["added_tokens_decoder"].items()}
    else:
        added = _json(files, "added_tokens.json")
        decoder = {
            i: {"content": text, "special": text in special, "normalized": text not in special}
            for text, i in added.items()
        }
    flags = ("lstrip", "rstrip", "single_word", "normalized")
    listed = [
        Added(
            token["content"],
            i,
            bool(token.get("special")) or token["content"] in special,
            *(bool(token.get(flag)) for flag in flags),
        )
        for i, token in sorted(decoder.items())
    ]
    ends = _json(files, "generation_config.json").get("eos_token_id") or []
    return Settings(
        names,
        [*listed, *map(Added, [*names.values(), *others])],
        _template_text(files, config),
        [int(i) for i in (ends if isinstance(ends, list) else [ends])],
        config.get("tokenizer_class") in _PLAIN,
    )


def _template_text(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    """Return the chat template, of several the one named default."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if template is not None and not isinstance(template, str):
        raise TypeError("tokenizer_config.json: chat_template must be a string or a list of them")
    return template
