"""Marking a completion: is it correct, and is it in the right language?"""

import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from aya_jax.data.atlas import entities
from aya_jax.data.atlas.kinds import currency, language, month, territory, weekday
from aya_jax.data.languages import LANGUAGES, script_share

# Marks without width or meaning here: bidirectional controls, joiners, byte-order mark.
_INVISIBLE = dict.fromkeys(
    map(ord, "\u200b\u200c\u200d\u200e\u200f\u061c\u2066\u2067\u2068\u2069\ufeff")
)

# Letters that tell languages of one script apart: a word with one of them is not in that language.
_FOREIGN_LETTERS = {
    "ru": re.compile("[іїєґ]", re.IGNORECASE),
    "uk": re.compile("[ыэёъ]", re.IGNORECASE),
    "ar": re.compile("[پچژگکی]"),
    "fa": re.compile("[كية]"),
}


class Verdict(NamedTuple):
    """`correct` says whether the answer is accepted, `right_language` whether its language is."""

    correct: bool
    right_language: bool


def normalise(text: str) -> str:
    """Return text in the form in which answers are compared.

    NFKC (which folds no-break spaces and full-width forms), no invisible marks, single spaces, case
    folded, no quotation marks around it and no full stop at its end.
    """
    folded = unicodedata.normalize("NFKC", text).translate(_INVISIBLE).casefold()
    return " ".join(folded.split()).strip(" .。।!?؟'\"«»“”„「」")


@cache
def _lexicon() -> dict[str, frozenset[str]]:
    """Return the languages of every name that CLDR knows, normalised."""
    known: dict[str, set[str]] = {}
    things = (
        [(weekday, str(i)) for i in range(7)]
        + [(month, str(i)) for i in range(1, 13)]
        + [(territory, code) for code in entities.territories(None)]
        + [(currency, code) for code in entities.currencies(None)]
        + [(language, code) for code in entities.languages(None)]
    )
    for code in LANGUAGES:
        for names, thing in things:
            for name in names(thing, code):
                known.setdefault(normalise(name), set()).add(code)
    return {name: frozenset(codes) for name, codes in known.items()}


def in_language(text: str, code: str, reference: str) -> bool:
    """Return whether `text` can be `code`: by script, telling letters and CLDR's names.

    `reference` is a right answer: where it has no letters, `text` needs none either.
    """
    clean = normalise(text)
    if not clean:
        return False
    letters = any(ch.isalpha() for ch in clean)
    if not letters:
        return not any(ch.isalpha() for ch in reference)
    foreign = _FOREIGN_LETTERS.get(code)
    if foreign and foreign.search(clean):
        return clean == normalise(reference)
    known = _lexicon().get(clean)
    if known is not None:
        return code in known
    return script_share(clean, LANGUAGES[code].script) > 0.5 or clean == normalise(reference)


def check(record: Mapping[str, Any], completion: str) -> Verdict:
    """Mark a completion of a record against its `answers` and `answer_language`.

    Correct is what equals one of the answers when both are normalised. A correct completion is in
    the right language; of any other, see `in_language`.

    Args:
      record: with `answers`, and `answer_language` or else `language`.
      completion: any text.
    """
    clean = normalise(completion)
    correct = any(clean == normalise(answer) for answer in record["answers"])
    code = record.get("answer_language", record["language"])
    right = correct or in_language(completion, code, record["answers"][0])
    return Verdict(correct, right)
