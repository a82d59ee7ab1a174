"""Tokenizers: text to ids and back, and conversations to ids as their chat template has them.

Every family's files are read: `tokenizer.json`, sentencepiece models, the special tokens and the chat
template. Ids are those of transformers' `apply_chat_template`, but for one thing: what a user types is
text, even where it is the text of a special token. Only the template writes special tokens.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path

import gin
import sentencepiece
from jinja2 import TemplateError

from aya_jax.data.chat import ChatTemplate, Messages
from aya_jax.data.files import atomic_write
from aya_jax.data.pieces import (
    JsonPieces,
    Part,
    Pieces,
    SentencePieces,
    private_characters,
    special_pattern,
)
from aya_jax.data.tokenizer_files import VOCABULARIES, read_settings, tokenizer_files
from aya_jax.errors import AyaError

# The names of Cohere's special tokens, so that a template written for Aya Expanse means the same.
PAD, UNK, BOS, EOS = "<PAD>", "<UNK>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"
TURN_TOKENS = ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>")

# The format of Aya Expanse: FACTS of huggingface/transformers docs/source/en/model_doc/cohere.md.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>"
    "{% if message['role'] == 'user' %}<|USER_TOKEN|>"
    "{% elif message['role'] == 'assistant' %}<|CHATBOT_TOKEN|>"
    "{% elif message['role'] == 'system' %}<|SYSTEM_TOKEN|>{% endif %}"
    "{{ message['content'] | trim }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)

# What models were saved with when contents were trimmed before the template saw them.
_CHAT_TEMPLATE_BEFORE = CHAT_TEMPLATE.replace(" | trim", "")


class Tokenizer:
    """Pieces, special tokens and a chat template. Immutable once loaded.

    Attributes:
      files: the content of the tokenizer's files, by name.
      chat_template: its text, None where there is none.
      ids: the id of every token, by its text.
      vocab_size: one more than the largest id.
      bos_id: the id that begins a text, None for a family without one (Qwen).
      eos_id: the id that closes an assistant's turn, as the chat template has it; where there is no
        template, or one that closes no turn, that of `eos_token`.
      pad_id: the id of `pad_token`, or `eos_id` for a family without one (Llama 3). No padding is ever
        attended to or learnt, so it matters only that the id is in the vocabulary.
      stop_ids: the ids at which an answer ends: `eos_id`, that of `eos_token`, and those that
        `generation_config.json` names.
    """

    def __init__(self, files: Mapping[str, bytes], where: str = "the tokenizer") -> None:
        """Read a tokenizer from the content of its files.

        Args:
          files: by their names in `tokenizer_files.TOKENIZER_FILES`.
          where: heads the message of an error.

        Raises:
          AyaError: no file holds a vocabulary, one is damaged, or no token ends a text.
        """
        self.files = dict(files)
        try:
            self._read(self.files)
        except (
            *(RuntimeError, ValueError, TypeError, KeyError, AttributeError),
            TemplateError,
        ) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise AyaError(
                f"{where}: the tokenizer cannot be read ({reason}); fetch or copy its files again"
            ) from None

    def _read(self, files: Mapping[str, bytes]) -> None:
        vocabulary = next((name for name in VOCABULARIES if name in files), None)
        if vocabulary is None:
            raise ValueError(f"there is none of {', '.join(VOCABULARIES)}")
        settings = read_settings(files)
        self._pieces: Pieces = (
            JsonPieces(files[vocabulary], settings.added)
            if vocabulary == "tokenizer.json"
            else SentencePieces(files[vocabulary], settings.added)
        )
        names = {**self._pieces.names, **settings.names}
        self._plain = settings.plain
        self._special = self._pieces.special
        self._pattern = special_pattern(self._special)
        template = settings.template
        self.chat_template = CHAT_TEMPLATE if template == _CHAT_TEMPLATE_BEFORE else template
        self._template = ChatTemplate(self.chat_template, names) if self.chat_template else None
        self.ids, self.vocab_size = self._pieces.ids, self._pieces.vocab_size
        named = {name: self._pieces.id_of(text) for name, text in names.items()}
        self.bos_id = named.get("bos_token")
        end = named.get("eos_token")
        self._closing = self._closing_token()
        eos_id = end if self._closing is None else self._special[self._closing]
        if eos_id is None:
            raise ValueError("no token ends a text; name eos_token in tokenizer_config.json")
        self.eos_id = eos_id
        pad_id = named.get("pad_token")
        self.pad_id = eos_id if pad_id is None else pad_id
        ends = [eos_id, *([] if end is None else [end]), *settings.ends]
        self.stop_ids = tuple(dict.fromkeys(ends))

    def _closing_token(self) -> str | None:
        """Return the special token that follows the assistant's answer in the chat template."""
        if self._template is None:
            return None
        user, answer = private_characters("", 2)
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        try:
            text = self._template.render(turns, add_generation_prompt=False)
        except AyaError:
            return None
        found = self._pattern.search(text, text.rfind(answer) + 1) if answer in text else None
        return found[1] if found else None

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; the text of a special token is only text here."""
        return self._pieces.encode([text])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        return self._pieces.decode(int(i) for i in ids)

    def encode_chat(self, messages: Messages, *, add_generation_prompt: bool = True) -> list[int]:
        """Return the ids of a conversation as the chat template renders it.

        They are those of transformers' `apply_chat_template(messages, tokenize=True)`: the whole
        rendering is cut into pieces at once. What a user types is text, even if it is that of a
        special token: such text goes through the template as a character that nobody wrote, and is
        put back between the special tokens that the template wrote. Added tokens that are not special
        (`<think>` of Qwen3) are words like others, found wherever they stand.

        Aya 101 and other T5 models have no template: their prompt is the contents, a line each, and
        the end token.

        Args:
          messages: of `role` and `content`; nothing else is shown to the template.
          add_generation_prompt: whether to open the assistant's turn at the end.

        Raises:
          AyaError: there is no chat template, or it refuses the conversation.
        """
        if self._plain:
            return [*self.encode("\n".join(m["content"] for m in messages)), self.eos_id]
        turns, typed = self._hide(messages)
        return self._ids(self._render(turns, add_generation_prompt=add_generation_prompt), typed)

    def encode_completion(self, completion: str) -> list[int]:
        """Return the ids of a text, stripped, closed by the end-of-turn token."""
        return [*self.encode(completion.strip()), self.eos_id]

    def encode_answer(self, messages: Messages, completion: str) -> tuple[list[int], list[int]]:
        """Return the ids of a prompt, and those of its answer with the end-of-turn token.

        The first are `encode_chat(messages)`, which the model is asked to go on from. Together they
        are what the template gives for the whole conversation, up to the token that closes the answer;
        only where a piece would reach from the one into the other, they are cut apart there.

        Args:
          messages: the turns before the answer.
          completion: the answer; it is stripped.

        Raises:
          AyaError: the template refuses the conversation, does not close an assistant's turn, or does
            not render the conversation with its answer as it renders the prompt.
        """
        if self._plain:
            return self.encode_chat(messages), self.encode_completion(completion)
        answer = {"role": "assistant", "content": completion.strip()}
        turns, typed = self._hide([*messages, answer])
        prompt = self._render(turns[:-1], add_generation_prompt=True)
        whole = self._render(turns, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise AyaError(
                "the chat template writes the conversation with its answer otherwise than the prompt "
                "alone, so that nothing tells which tokens are the answer's; leave out the system turn "
                "or change the template"
            )
        whole = whole[: self._end_of_answer(whole, len(prompt))]
        opened, ids = self._ids(prompt, typed), self._ids(whole, typed)
        if ids[: len(opened)] == opened:
            return opened, ids[len(opened) :]
        # A special token keeps the pieces of what follows it to themselves.
        return opened, self._ids(f"{self._closing}{whole[len(prompt) :]}", typed)[1:]

    def assistant_spans(
        self, messages: Messages, *, add_generation_prompt: bool = False
    ) -> list[tuple[int, int]]:
        """Return where in the ids of `encode_chat` the assistant's answers are, [start, stop) each.

        A template with `{% generation %}` marks says so itself. For another, an answer begins where
        the rendering of the turns before it ends, generation prompt included, and ends with the token
        that closes it.

        Args:
          messages: of `role` and `content`.
          add_generation_prompt: as for `encode_chat`.

        Raises:
          AyaError: the template refuses the conversation, closes no turn, or writes the conversation
            otherwise than its beginning.
        """
        if self._plain or all(message["role"] != "assistant" for message in messages):
            return []
        turns, typed = self._hide(messages)
        render = partial(self._render, turns, add_generation_prompt=add_generation_prompt)
        text = render()
        places = []
        if self._template is not None and self._template.marks_answers:
            before, after = private_characters(text, 2)
            pieces = re.split(f"[{before}{after}]", render(marks=(before, after)))
            ends = [0]
            for piece in pieces:
                ends.append(ends[-1] + len(piece))
            places = list(zip(ends[1:-1:2], ends[2::2], strict=True))
        else:
            for i, turn in enumerate(turns):
                if turn["role"] == "assistant":
                    opened = self._render(turns[:i], add_generation_prompt=True)
                    if not text.startswith(opened):
                        raise AyaError(
                            f"the chat template writes the turns before turn {i + 1} otherwise where "
                            "others follow, so that nothing tells which tokens are the assistant's; "
                            "give it {% generation %} marks, or leave out the system turn"
                        )
                    places.append((len(opened), self._end_of_answer(text, len(opened))))
        ids = self._ids(text, typed)

        def position(place: int) -> int:
            """Return the number of tokens before a place in the text."""
            head = self._ids(text[:place], typed)
            same = takewhile(lambda pair: pair[0] == pair[1], zip(head, ids, strict=False))
            return sum(1 for _ in same)

        spans = [(position(start), position(stop)) for start, stop in places]
        return [(start, stop) for start, stop in spans if start < stop]

    def _end_of_answer(self, text: str, start: int) -> int:
        """Return the place after the token that closes the answer which begins at `start`."""
        place = -1 if self._closing is None else text.find(self._closing, start)
        if self._closing is None or place < 0:
            raise AyaError(
                "the chat template closes an assistant's turn with no special token, so that a model "
                "would not learn where to end; write eos_token after it in the template"
            )
        return place + len(self._closing)

    def _render(
        self, turns: Messages, *, add_generation_prompt: bool, marks: tuple[str, str] = ("", "")
    ) -> str:
        if self._template is None:
            raise AyaError(
                "the tokenizer has no chat template; write one to chat_template.jinja in the model's "
                "directory"
            )
        return self._template.render(
            turns, add_generation_prompt=add_generation_prompt, marks=marks
        )

    def _hide(self, messages: Messages) -> tuple[list[dict[str, str]], dict[int, str]]:
        """Return the messages with typed special tokens as characters, and what these stand for."""
        contents = [message["content"] for message in messages]
        texts = sorted({text for content in contents for text in self._pattern.findall(content)})
        hidden = dict(zip(texts, private_characters("".join(contents), len(texts)), strict=True))
        turns = [
            {
                "role": message["role"],
                "content": self._pattern.sub(lambda m: hidden[m[1]], message["content"]),
            }
            for message in messages
        ]
        return turns, {ord(character): text for text, character in hidden.items()}

    def _ids(self, text: str, typed: Mapping[int, str]) -> list[int]:
        """Return the ids of a rendered text in which typed special tokens are hidden."""
        parts: list[Part] = []
        for n, part in enumerate(self._pattern.split(text)):
            if n % 2:
                parts.append(self._special[part])
            elif part:
                parts.append(part.translate(typed))
        return self._pieces.encode(parts)

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer's files into `directory`."""
        for name, content in self.files.items():
            atomic_write(Path(directory, name), content)

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Read the tokenizer of a model directory, ours or of Hugging Face.

        `tokenizer.json` is taken before a sentencepiece model, as in transformers.

        Raises:
          AyaError: a file is missing or damaged.
        """
        directory = Path(directory)
        try:
            files = {name: (directory / name).read_bytes() for name in tokenizer_files(directory)}
        except OSError as error:
            raise AyaError(f"{error.filename}: cannot be read ({error.strerror})") from None
        return cls(files, str(directory))


def own_files(model: bytes, chat_template: str = CHAT_TEMPLATE) -> dict[str, bytes]:
    """Return the files of a tokenizer of ours: a sentencepiece model with Cohere's special tokens."""
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNK,
        "add_bos_token": False,
        "add_prefix_space": False,
        "chat_template": chat_template,
    }
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    return {"tokenizer.model": model, "tokenizer_config.json": text.encode("utf-8")}


@gin.configurable
def train_tokenizer(
    text: Iterable[str], *, vocab_size: int = 4096, character_coverage: float = 1.0
) -> Tokenizer:
    """Train a byte-pair sentencepiece tokenizer with byte fallback on lines of text.

    Digits are split one by one and text is kept exactly as it is (no normalisation), since dates
    and numbers are written with spaces that a normaliser would change.

    Args:
      text: lines.
      vocab_size: pieces, special tokens and 256 bytes included.
      character_coverage: share of the characters that get a piece; the others are written in bytes.

    Raises:
      AyaError: the vocabulary does not fit the text.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=PAD,
            unk_piece=UNK,
            bos_piece=BOS,
            eos_piece=EOS,
            control_symbols=list(TURN_TOKENS),
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise AyaError(
            f"train_tokenizer: sentencepiece refused vocab_size={vocab_size} "
            f"({str(error).splitlines()[0]}); give another size or more text"
        ) from None
    return Tokenizer(own_files(model.getvalue()))
