"""Sentencepiece tokenizers with turn tokens and a chat template."""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import gin
import sentencepiece
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aya_jax.data.files import atomic_write
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
    "{{ message['content'] }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)

# Message contents travel through the template as numbered marks from a private-use area, so that a
# user who types the text of a special token cannot open or close a turn.
_MARK = re.compile("\ue000([0-9]+)\ue001")


class Tokenizer:
    """A sentencepiece model with its chat template. Immutable once loaded."""

    def __init__(self, model: bytes, chat_template: str = CHAT_TEMPLATE) -> None:
        self.model = model
        self.chat_template = chat_template
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.pad_id = self._processor.piece_to_id(PAD)
        self.bos_id = self._processor.piece_to_id(BOS)
        self.eos_id = self._processor.piece_to_id(EOS)
        self._special = {
            self._processor.id_to_piece(i): i
            for i in range(self.vocab_size)
            if self._processor.is_control(i)
        }
        self._template = ImmutableSandboxedEnvironment().from_string(chat_template)

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return self._processor.vocab_size()

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return re.compile(
            "(" + "|".join(map(re.escape, sorted(self._special))) + "|\ue000[0-9]+\ue001)"
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; the text of a special token is only text here."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        special = set(self._special.values())
        return self._processor.decode([int(i) for i in ids if int(i) not in special])

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the ids of a conversation as the chat template renders it.

        Contents are stripped. What a user types is text, even if it is that of a special token.

        Args:
          messages: of `role` and `content`.
          add_generation_prompt: whether to open the assistant's turn at the end.
        """
        contents = [message["content"].strip() for message in messages]
        marked = [
            {"role": message["role"], "content": f"\ue000{i}\ue001"}
            for i, message in enumerate(messages)
        ]
        rendered = self._template.render(
            messages=marked,
            bos_token=BOS,
            eos_token=EOS,
            add_generation_prompt=add_generation_prompt,
        )
        ids: list[int] = []
        for part in self._special_pattern.split(rendered):
            mark = _MARK.fullmatch(part)
            if mark:
                ids.extend(self.encode(contents[int(mark[1])]))
            elif part in self._special:
                ids.append(self._special[part])
            elif part:
                ids.extend(self.encode(part))
        return ids

    def encode_completion(self, completion: str) -> list[int]:
        """Return the ids of an assistant's answer, closed by the end-of-turn token."""
        return [*self.encode(completion.strip()), self.eos_id]

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.model` and `tokenizer_config.json` into `directory`."""
        directory = Path(directory)
        atomic_write(directory / "tokenizer.model", self.model)
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": UNK,
            "add_bos_token": False,
            "chat_template": self.chat_template,
        }
        text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        atomic_write(directory / "tokenizer_config.json", text)

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Read what `save` wrote.

        Raises:
          AyaError: a file is missing or damaged.
        """
        directory = Path(directory)
        try:
            model = (directory / "tokenizer.model").read_bytes()
            config = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
            if not model:
                raise ValueError("tokenizer.model is empty")
            return cls(model, config["chat_template"])
        except FileNotFoundError as error:
            raise AyaError(
                f"{error.filename}: no such file; {directory} is no whole model"
            ) from None
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, TemplateError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AyaError(f"{directory}: the tokenizer cannot be read ({reason})") from None


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
    return Tokenizer(model.getvalue())
