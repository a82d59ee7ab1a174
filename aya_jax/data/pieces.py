"""The two engines that cut text into pieces: sentencepiece models, and the tokenizers library.

Both take a text in parts. A part that is a number is the id of a special token; a part that is text is
only text, even where it is that of a special token.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import sentencepiece
import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

Part = str | int

# Characters that stand for something else on the way, taken from the last two planes of private use.
_PRIVATE = range(0xF0000, 0x10FFFE)


def private_characters(text: str, count: int) -> list[str]:
    """Return `count` private-use characters that are not in `text`."""
    used = set(text)
    free = (chr(code) for code in _PRIVATE if chr(code) not in used)
    return [next(free) for _ in range(count)]


class Added(NamedTuple):
    """A token that was added to a vocabulary, as `tokenizer_config.json` tells of it."""

    text: str
    id: int | None = None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class Pieces(Protocol):
    """What an engine does."""

    special: Mapping[str, int]
    """The special tokens, which only a template can write."""

    ids: Mapping[str, int]
    """All tokens, added ones too."""

    vocab_size: int
    """One more than the largest id."""

    names: Mapping[str, str]
    """The special tokens that the model itself knows by a name such as `bos_token`."""

    def id_of(self, piece: str) -> int | None:
        """Return the id of a piece, None if there is no such piece."""

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """Return the ids of a text in parts."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, special tokens left out."""


class SentencePieces:
    """A sentencepiece model. Bytes stand for what has no piece, if the model has them."""

    def __init__(self, model: bytes, added: Iterable[Added]) -> None:
        """Read a model.

        Args:
          model: the content of `tokenizer.model` or `spiece.model`.
          added: tokens besides the model's control symbols that are special, or have an id beyond
            those of the model.

        Raises:
          RuntimeError, ValueError: it is no sentencepiece model.
        """
        if not model:
            raise ValueError("the sentencepiece model is empty")
        self._first = sentencepiece.SentencePieceProcessor(model_proto=model)
        proto = ModelProto.FromString(model)
        self._size, control = len(proto.pieces), ModelProto.SentencePiece.CONTROL
        self._ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        unknown = proto.trainer_spec.unk_id
        for token in added:
            i = self._ids.get(token.text, token.id)
            if i is None or i == unknown:
                continue
            if i >= self._size:
                self._ids[token.text] = i
            elif token.special:
                # Some models find their turn tokens in any text; here only the template writes them.
                proto.pieces[i].type = control
        self.special: Mapping[str, int] = {
            text: i
            for text, i in self._ids.items()
            if i >= self._size or proto.pieces[i].type == control
        }
        self.ids: Mapping[str, int] = self._ids
        self.vocab_size = 1 + max(self._ids.values())
        self.names: Mapping[str, str] = {
            f"{kind}_token": proto.pieces[i].piece
            for kind in ("bos", "eos", "pad", "unk")
            if 0 <= (i := getattr(proto.trainer_spec, f"{kind}_id")) < self._size
        }
        self._first.LoadFromSerializedProto(proto.SerializeToString())
        # The space that some models put before a text belongs to its beginning alone.
        proto.normalizer_spec.add_dummy_prefix = False
        self._later = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def id_of(self, piece: str) -> int | None:
        """Return the id of a piece, None if there is no such piece."""
        return self._ids.get(piece)

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """Return the ids of a text in parts."""
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend((self._later if ids else self._first).encode(part))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        special = set(self.special.values())
        return self._first.decode([i for i in ids if i < self._size and i not in special])


class JsonPieces:
    """A `tokenizer.json`, read by the tokenizers library."""

    names: Mapping[str, str] = {}

    def __init__(self, content: bytes, added: Iterable[Added]) -> None:
        """Read a tokenizer.

        Args:
          content: of `tokenizer.json`.
          added: tokens besides its own added tokens.

        Raises:
          ValueError: it is no tokenizer.
        """
        try:
            self._engine = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"tokenizer.json: {error}") from None
        self._engine.no_truncation()
        self._engine.no_padding()
        known = {token.content for token in self._engine.get_added_tokens_decoder().values()}
        special = set()
        for token in added:
            if token.special:
                special.add(token.text)
            if token.text not in known:
                known.add(token.text)
                self._engine.add_tokens(
                    [
                        tokenizers.AddedToken(
                            token.text,
                            single_word=token.single_word,
                            lstrip=token.lstrip,
                            rstrip=token.rstrip,
                            normalized=token.normalized,
                            special=token.special,
                        )
                    ]
                )
        tokens = self._engine.get_added_tokens_decoder()
        self.special: Mapping[str, int] = {
            token.content: i
            for i, token in tokens.items()
            if token.special or token.content in special
        }
        self.ids: Mapping[str, int] = self._engine.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(self.ids.values())
        self._texts = {i: text for text, i in self.special.items()}
        self._found = special_pattern(self.special)
        self._marked: dict[str, tokenizers.Tokenizer] = {}

    def id_of(self, piece: str) -> int | None:
        """Return the id of a piece, None if there is no such piece."""
        return self._engine.token_to_id(piece)

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """Return the ids of a text in parts.

        The whole text is cut at once, because pieces may reach over what a template joins.
        """
        texts = [part for part in parts if isinstance(part, str)]
        if not any(self._found.search(text) for text in texts):
            whole = "".join(p if isinstance(p, str) else self._texts[p] for p in parts)
            return self._engine.encode(whole, add_special_tokens=False).ids
        # Text that reads like a special token: the true ones are written otherwise, in a way that
        # this text does not have, for a tokenizer that knows them by that writing alone.
        (mark,) = private_characters("".join(texts), 1)
        if mark not in self._marked:
            self._marked[mark] = self._rename(mark)
        whole = "".join(p if isinstance(p, str) else f"{mark}{p}{mark}" for p in parts)
        return self._marked[mark].encode(whole, add_special_tokens=False).ids

    def _rename(self, mark: str) -> tokenizers.Tokenizer:
        """Return this tokenizer with each special token's text replaced by its id between marks."""
        content = json.loads(self._engine.to_str())
        names = {text: f"{mark}{i}{mark}" for text, i in self.special.items()}
        for token in content["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = content["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(t, t): i for t, i in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(t, t), score] for t, score in model["vocab"]]
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in names]
        if model.get("unk_token"):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        content["post_processor"] = None
        return tokenizers.Tokenizer.from_str(json.dumps(content))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        return self._engine.decode([i for i in ids if i not in self._texts])


def special_pattern(special: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern whose only group is a special token, the longest that begins at a place."""
    longest_first = sorted(special, key=lambda text: (-len(text), text))
    return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")
