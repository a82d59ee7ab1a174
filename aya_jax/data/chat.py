"""Chat templates: Jinja2 in a sandbox, with what transformers gives to templates."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aya_jax.errors import AyaError

Messages = Sequence[Mapping[str, str]]

# A prompt must have the same ids tomorrow, so a template that asks for today is always told the day
# that Llama's own template takes where it is told none.
_TODAY = datetime(2024, 7, 26)


class ChatTemplate:
    """A compiled chat template.

    It sees `messages`, `tools` and `documents` (both None), `add_generation_prompt`, the special
    tokens by their names, and `raise_exception`, `strftime_now` (a day that never changes), `tojson`,
    loop controls and `{% generation %}`, as in transformers.utils.chat_template_utils. It can read
    nothing else and change nothing.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        """Compile.

        Args:
          source: the template's text.
          variables: the special tokens, by such names as `bos_token`.

        Raises:
          jinja2.TemplateError, TypeError: it does not compile.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _TODAY.strftime
        self._template = environment.from_string(source)
        self._variables = dict(variables)
        self.marks_answers = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool,
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        """Return the text of a conversation.

        Args:
          messages: of `role` and `content`.
          add_generation_prompt: whether to open the assistant's turn at the end.
          marks: what is written before and after each `{% generation %}` block.

        Raises:
          AyaError: the template refuses the conversation or fails; the message names the turn.
        """

        def attempt(turns: Messages) -> str:
            return self._template.render(
                {
                    **self._variables,
                    "messages": [dict(turn) for turn in turns],
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                    "generation_marks": marks,
                }
            )

        try:
            return attempt(messages)
        except Exception as error:  # a template may fail in as many ways as a program
            reason = _line(error)
            turn = _first_refused(attempt, messages, reason)
            role = f" ({messages[turn - 1]['role']})" if messages else ""
            raise AyaError(
                f"the chat template refuses turn {turn} of {len(messages)}{role}: {reason}; "
                "change the messages or the template"
            ) from None


def _first_refused(attempt: Callable[[Messages], str], messages: Messages, reason: str) -> int:
    """Return the number of the turn at which rendering first fails for this reason."""
    for count in range(1, len(messages)):
        try:
            attempt(messages[:count])
        except Exception as error:
            if _line(error) == reason:
                return count
    return len(messages)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes what HTML would take for markup.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: what the assistant wrote, between marks."""

    tags = {"generation"}  # noqa: RUF012 (Jinja asks for a set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked", [nodes.ContextReference()])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, context: Context, caller: Callable[[], str]) -> str:
        before, after = context["generation_marks"]
        return f"{before}{caller()}{after}"
