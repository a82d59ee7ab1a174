"""The task kinds: what each one asks (slots) and what CLDR answers, in any of the 23 languages."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache

from babel import Locale, localedata
from babel.dates import format_date
from babel.lists import format_list
from babel.numbers import format_currency, format_decimal
from babel.units import format_unit

from aya_jax.data.atlas import entities


@cache
def locale(code: str) -> Locale:
    """Return CLDR's data of a language.

    Babel (2.18) lets languages share what none of them says itself, and writes there what it finds
    for the first that asks: after the Hebrew months, those of French that stand alone are Hebrew
    too. So each language is given a copy of its own first.
    """
    data = localedata.load(code)
    data.update(deepcopy(data))
    return Locale.parse(code)


def _unique(*answers: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(a for a in answers if a))


@cache
def weekday(index: str, code: str) -> tuple[str, ...]:
    """Return the names of weekday 0 (Monday) to 6, stand-alone first."""
    days = locale(code).days
    return _unique(days["stand-alone"]["wide"][int(index)], days["format"]["wide"][int(index)])


@cache
def month(index: str, code: str) -> tuple[str, ...]:
    """Return the names of month 1 to 12, stand-alone first (`format` is the genitive in some)."""
    months = locale(code).months
    return _unique(months["stand-alone"]["wide"][int(index)], months["format"]["wide"][int(index)])


@cache
def territory(iso: str, code: str) -> tuple[str, ...]:
    """Return the name of a territory (ISO 3166), () where CLDR has none."""
    return _unique(locale(code).territories.get(iso, ""))


@cache
def currency(iso: str, code: str) -> tuple[str, ...]:
    """Return the name of a currency (ISO 4217), () where CLDR has none."""
    return _unique(locale(code).currencies.get(iso, ""))


@cache
def language(name: str, code: str) -> tuple[str, ...]:
    """Return the name of a language (`name` is its code), () where CLDR has none."""
    return _unique(locale(code).languages.get(name, ""))


def _money(arg: str, code: str) -> tuple[str, ...]:
    amount, iso = arg.split()
    return _unique(format_currency(Decimal(amount), iso, locale=locale(code)))


def _quantity(arg: str, code: str) -> tuple[str, ...]:
    count, unit = arg.split()
    text = format_unit(int(count), unit, length="long", locale=locale(code))
    # Babel writes the unit's identifier where CLDR has no pattern for it.
    return () if unit in text else (text,)


def _short_quantity(arg: str, code: str) -> dict[str, str]:
    count, unit = arg.split()
    text = format_unit(int(count), unit, length="short", locale=locale(code))
    return {"quantity": "" if unit in text else text}


def _names(arg: str, code: str) -> list[str]:
    return [territory(iso, code)[0] for iso in arg.split()]


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
      name: as in the templates and the records.
      args: the things asked about, given how many entities to keep.
      slots: what stands in the question, given the thing and the language of the question.
      answers: the accepted answers in a language, the reference first.
      cross: whether the answer may be asked for in another language.
    """

    name: str
    args: Callable[[int | None], tuple[str, ...]]
    slots: Callable[[str, str], dict[str, str]]
    answers: Callable[[str, str], tuple[str, ...]]
    cross: bool = False


def _name(of: Callable[[str, str], tuple[str, ...]]) -> Callable[[str, str], dict[str, str]]:
    return lambda arg, code: {"name": next(iter(of(arg, code)), "")}


def _following(
    of: Callable[[str, str], tuple[str, ...]], first: int, count: int
) -> Callable[[str, str], tuple[str, ...]]:
    return lambda arg, code: of(str((int(arg) - first + 1) % count + first), code)


def _range(first: int, count: int) -> Callable[[int | None], tuple[str, ...]]:
    return lambda _: tuple(str(i) for i in range(first, first + count))


# A word whose language is asked for: "language:kind:index" of a weekday or a month.
def _words(count: int | None) -> tuple[str, ...]:
    del count
    codes = entities.LANGUAGE_NAMES[:23]
    days = [f"{code} weekday {i}" for code in codes for i in range(7)]
    return tuple(days + [f"{code} month {i}" for code in codes for i in range(1, 13)])


def _word(arg: str, code: str) -> dict[str, str]:
    del code
    of, sort, index = arg.split()
    return {"name": (weekday if sort == "weekday" else month)(index, of)[0]}


@cache
def _languages_of(word: str) -> tuple[str, ...]:
    return tuple(
        arg.split()[0] for arg in _words(None) if _word(arg, "")["name"].casefold() == word
    )


def _word_language(arg: str, code: str) -> tuple[str, ...]:
    """Every language that has this very word is a right answer; the one it was taken from first."""
    of = arg.split()[0]
    others = _languages_of(_word(arg, code)["name"].casefold())
    return _unique(*(language(c, code)[0] for c in (of, *others)))


_KINDS = (
    Kind("territory_name", entities.territories, _name(territory), territory, cross=True),
    Kind("territory_code", entities.territories, lambda arg, _: {"code": arg}, territory),
    Kind("currency_name", entities.currencies, lambda arg, _: {"code": arg}, currency),
    Kind(
        "currency_format",
        entities.amounts,
        lambda arg, _: dict(zip(("amount", "code"), arg.split(), strict=True)),
        _money,
    ),
    Kind("language_name", entities.languages, _name(language), language, cross=True),
    Kind("which_language", _words, _word, _word_language),
    Kind("weekday_name", _range(0, 7), _name(weekday), weekday, cross=True),
    Kind("next_weekday", _range(0, 7), _name(weekday), _following(weekday, 0, 7)),
    Kind("month_name", _range(1, 12), _name(month), month, cross=True),
    Kind("next_month", _range(1, 12), _name(month), _following(month, 1, 12)),
    Kind(
        "date_format",
        entities.dates,
        lambda arg, _: {"date": arg},
        lambda arg, code: _unique(
            format_date(date.fromisoformat(arg), "long", locale=locale(code))
        ),
    ),
    Kind(
        "number_format",
        entities.numbers,
        lambda arg, _: {"number": arg},
        lambda arg, code: _unique(format_decimal(Decimal(arg), locale=locale(code))),
    ),
    Kind("unit_format", entities.quantities, _short_quantity, _quantity),
    Kind(
        "list_format",
        entities.triples,
        lambda arg, code: {"items": "; ".join(_names(arg, code))},
        lambda arg, code: _unique(format_list(_names(arg, code), locale=locale(code))),
    ),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _KINDS}
