"""The 23 languages of Aya Expanse, their scripts, and the clusters that languages are trained in."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import gin

from aya_jax.errors import AyaError, nearest


@dataclass(frozen=True)
class Language:
    """One language: BCP-47 `code`, English `name`, ISO 15924 `script`, writing `direction`."""

    code: str
    name: str
    script: str
    direction: str = "ltr"


_TABLE = """
ar Arabic Arab rtl | cs Czech Latn ltr | de German Latn ltr | el Greek Grek ltr
en English Latn ltr | es Spanish Latn ltr | fa Persian Arab rtl | fr French Latn ltr
he Hebrew Hebr rtl | hi Hindi Deva ltr | id Indonesian Latn ltr | it Italian Latn ltr
ja Japanese Jpan ltr | ko Korean Kore ltr | nl Dutch Latn ltr | pl Polish Latn ltr
pt Portuguese Latn ltr | ro Romanian Latn ltr | ru Russian Cyrl ltr | tr Turkish Latn ltr
uk Ukrainian Cyrl ltr | vi Vietnamese Latn ltr | zh Chinese Hani ltr
"""

LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        Language(*entry.split())
        for line in _TABLE.strip().splitlines()
        for entry in line.split("|")
    )
}

# The Unicode names of characters begin with their script; this is all we need of the property.
_SCRIPT_PREFIXES: dict[str, tuple[str, ...]] = {
    "Latn": ("LATIN", "FULLWIDTH LATIN"),
    "Cyrl": ("CYRILLIC",),
    "Grek": ("GREEK",),
    "Arab": ("ARABIC",),
    "Hebr": ("HEBREW",),
    "Deva": ("DEVANAGARI",),
    "Hani": ("CJK",),
    "Jpan": ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA"),
    "Kore": ("HANGUL",),
}

_BCP47 = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def check_language(code: object, where: str = "") -> str:
    """Return `code` if it is one of the 23 languages, a variant of one, or raise `AyaError`.

    Variants (`zh-Hant`, `pt-BR`) are accepted: the part before the first hyphen decides.
    `where` (a file and line, say) heads the message.
    """
    if isinstance(code, str) and _BCP47.fullmatch(code) and code.split("-")[0] in LANGUAGES:
        return code
    hint = nearest(str(code), LANGUAGES)
    raise AyaError(f"{where + ': ' if where else ''}unknown language {code!r}{hint}")


def language_of(code: str) -> Language:
    """Return the `Language` of a code or of its variant (`zh-Hant` is Chinese).

    Raises:
      AyaError: the language is unknown.
    """
    return LANGUAGES[check_language(code).split("-")[0]]


def script_share(text: str, script: str) -> float:
    """Return the share of the letters of `text` that belong to `script`, 0.0 without letters.

    Letters and combining marks are counted (Unicode categories L and M). `script` is an ISO 15924
    code; `Jpan` is kanji and both kana.
    """
    prefixes = _SCRIPT_PREFIXES[script]
    letters = [ch for ch in text if unicodedata.category(ch)[0] in "LM"]
    if not letters:
        return 0.0
    return sum(unicodedata.name(ch, "").startswith(prefixes) for ch in letters) / len(letters)


@gin.configurable
def language_clusters(
    *,
    shared: Sequence[str] = ("en", "es", "fr"),
    groups: Mapping[str, Sequence[str]] = gin.REQUIRED,
) -> dict[str, tuple[str, ...]]:
    """Return the languages of each cluster: the `shared` ones and the cluster's own, sorted.

    Aya Expanse trains one model for each cluster of related languages and shares English, Spanish
    and French between all of them; the clusters themselves were never published.

    Raises:
      AyaError: an unknown language, or one in two clusters.
    """
    owner: dict[str, str] = {}
    clusters = {}
    for name, codes in groups.items():
        for code in (*shared, *codes):
            check_language(code, f"language_clusters: {name}")
        for code in codes:
            if code in shared:
                continue
            if code in owner:
                raise AyaError(
                    f"language_clusters: {code} is in both {owner[code]} and {name}; "
                    "put it in one, or in 'shared'"
                )
            owner[code] = name
        clusters[name] = tuple(sorted({*shared, *codes}))
    return clusters
