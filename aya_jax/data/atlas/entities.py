"""What the atlas asks about: the open sets in order of prominence, and pools for formatting."""

import hashlib
from datetime import date, timedelta
from functools import cache

from babel import Locale

# The best-known first: `entities = N` keeps the first N of each list.
_TERRITORIES = (
    "US CN IN JP DE GB FR BR IT CA RU KR ES MX ID TR NL SA CH PL SE BE AR AT NO IL IE TH EG "
    "GR PT CZ RO VN UA IR FI DK HU NZ AU CL CO PE PK BD NG ZA KE MA IQ SY LB JO AF UZ KZ GE "
    "AM AZ MM KH LA MY SG PH NP LK MN KP CU VE EC BO UY PY "
)
TERRITORIES: tuple[str, ...] = tuple(_TERRITORIES.split())
_CURRENCIES = (
    "USD EUR JPY GBP CNY INR BRL RUB KRW MXN IDR TRY SAR CHF PLN SEK ARS NOK ILS THB EGP CZK "
    "RON VND UAH IRR DKK HUF NZD AUD CAD CLP COP PEN PKR NGN ZAR KES MAD IQD "
)
CURRENCIES: tuple[str, ...] = tuple(_CURRENCIES.split())
_LANGUAGE_NAMES = (
    "en zh es hi ar fr de ja ru pt it ko tr vi pl fa nl uk ro el cs he id sv da fi no hu th "
    "bn ur ta te sw bg hr sr sk sl lt lv et ka hy az kk uz mn ne si km lo my ms tl ca eu gl "
    "is ga cy mt sq mk la eo "
)
LANGUAGE_NAMES: tuple[str, ...] = tuple(_LANGUAGE_NAMES.split())
_UNITS = (
    "length-kilometer mass-kilogram duration-hour duration-minute duration-day volume-liter "
    "length-meter mass-gram duration-second duration-week duration-month duration-year "
    "length-centimeter length-millimeter length-mile digital-megabyte "
    "digital-gigabyte temperature-celsius power-watt energy-kilowatt-hour "
)
UNITS: tuple[str, ...] = tuple(_UNITS.split())
COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 21, 22, 25, 30, 40, 50, 60, 75, 90, 100)


def _draw(name: str, index: int, below: int) -> int:
    digest = hashlib.sha256(f"{name}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % below


def _codes(table: str) -> list[str]:
    """Return the codes of one of CLDR's tables of names, sorted."""
    return sorted(str(code) for code in getattr(Locale("en"), table))


@cache
def territories(count: int | None) -> tuple[str, ...]:
    """Return ISO 3166 codes, the best known first."""
    rest = [c for c in _codes("territories") if len(c) == 2 and c not in TERRITORIES]
    return tuple(
        [*TERRITORIES, *(c for c in rest if c.isalpha() and c not in NO_TERRITORY)][:count]
    )


# Groupings and placeholders that CLDR names beside the territories.
NO_TERRITORY = frozenset(("EU", "EZ", "UN", "XA", "XB", "ZZ", "QO"))


@cache
def currencies(count: int | None) -> tuple[str, ...]:
    """Return ISO 4217 codes, the most used first."""
    rest = [code for code in _codes("currencies") if code not in CURRENCIES]
    return tuple([*CURRENCIES, *(c for c in rest if not c.startswith("X"))][:count])


@cache
def languages(count: int | None) -> tuple[str, ...]:
    """Return language codes, the 23 of Aya Expanse first."""
    rest = [c for c in _codes("languages") if c.isalpha() and c not in LANGUAGE_NAMES]
    return tuple(
        [*LANGUAGE_NAMES, *(c for c in rest if c not in ("und", "zxx", "mul", "mis"))][:count]
    )


@cache
def quantities(count: int | None) -> tuple[str, ...]:
    """Return "number unit" pairs, each unit with every count."""
    return tuple(f"{n} {unit}" for unit in UNITS[:count] for n in COUNTS)


@cache
def dates(count: int | None) -> tuple[str, ...]:
    """Return 480 ISO dates from 2000 to 2029, whatever the count."""
    del count
    first = date(2000, 1, 1)
    days = sorted({_draw("date", i, 10950) for i in range(480)})
    return tuple((first + timedelta(days=day)).isoformat() for day in days)


@cache
def numbers(count: int | None) -> tuple[str, ...]:
    """Return 480 numbers from 1,000 to 99,999, some with one or two decimals."""
    del count
    out = []
    for i in range(480):
        whole, decimals = 1000 + _draw("number", i, 99000), _draw("decimals", i, 3)
        fraction = _draw("fraction", i, 9) + 1
        out.append(f"{whole}" if not decimals else f"{whole}.{'0' * (decimals - 1)}{fraction}")
    return tuple(sorted(set(out)))


@cache
def amounts(count: int | None) -> tuple[str, ...]:
    """Return "amount currency" pairs, twelve amounts for each currency."""
    return tuple(
        f"{10 + _draw(code, i, 9990)} {code}" for code in CURRENCIES[:count] for i in range(12)
    )


@cache
def triples(count: int | None) -> tuple[str, ...]:
    """Return 240 lists of three different territories."""
    codes = TERRITORIES[: max(count or 40, 6)]
    lists = set()
    for i in range(240):
        picked = sorted(codes, key=lambda code: _draw(code, i, 1 << 60))[:3]
        lists.add(" ".join(picked))
    return tuple(sorted(lists))
