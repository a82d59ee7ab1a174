"""How often each record is learnt from: by its language, by its source, and by sampling temperature."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import gin

from aya_jax.data.files import fingerprint, stable_hash
from aya_jax.data.languages import check_language
from aya_jax.data.records import Record
from aya_jax.errors import AyaError

# The language of records that have none.
NONE = ""


@gin.configurable(denylist=["records"])
def mixture(
    records: Sequence[Record],
    *,
    temperature: float = 1.0,
    languages: Mapping[str, float] | None = None,
    sources: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Return the records that a training learns from, each as often as its weight says.

    Of n_l records in language l the share is p_l, proportional to n_l^(1/T), so that T above 1 brings
    small languages nearer to large ones; the number of all records stays the same. With alpha = 1/T
    that is XLM's sampling (arXiv 1901.07291, section 3.1) and mT5's (arXiv 2010.11934, section 3.2,
    alpha 0.3); T is called the temperature in arXiv 1907.05019.

    A record that is wanted 2.3 times is there twice or three times: of all records of its language and
    weight three tenths are there once more. Which these are follows from hashes of their contents,
    not from their order.

    Args:
      records: with `language` and `source`, where they have one.
      temperature: T; 1 leaves the languages as they are.
      languages: how many times as often a language's records are there; 1 where absent, 0 leaves them
        out. On top of the temperature.
      sources: the same, by the records' `source`. Before the temperature: n_l counts a record of
        weight 2 as two.
      seed: of the hashes.

    Raises:
      AyaError: the temperature is not positive, a weight negative, a language unknown, or nothing is
        left.
    """
    by_language, by_source = dict(languages or {}), dict(sources or {})
    if not temperature > 0:
        raise AyaError(f"mixture.temperature is {temperature}; it must be above 0")
    for name, weights in (("languages", by_language), ("sources", by_source)):
        for key, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise AyaError(f"mixture.{name}: {key!r} has weight {weight}; give 0 or more")
    for code in by_language:
        check_language(code, "mixture.languages")

    cells: dict[tuple[str, float], list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        weight = by_source.get(str(record.get("source")), 1.0)
        cells[record.get("language", NONE), weight].append(i)
    sizes: dict[str, float] = defaultdict(float)
    for (language, weight), members in cells.items():
        sizes[language] += weight * len(members)
    largest = max(sizes.values(), default=0.0) or 1.0
    wanted = {language: (size / largest) ** (1 / temperature) for language, size in sizes.items()}
    scale = sum(sizes.values()) / (sum(wanted.values()) or 1.0)

    times = [0] * len(records)
    for (language, weight), members in cells.items():
        if not weight:
            continue
        share = by_language.get(language, 1.0) * scale * wanted[language] / sizes[language]
        often, rest = divmod(round(share * weight * len(members)), len(members))
        if rest:
            members = sorted(members, key=lambda i: stable_hash(seed, fingerprint(records[i])))
        for place, i in enumerate(members):
            times[i] = often + (place < rest)
    drawn = [record for record, count in zip(records, times, strict=True) for _ in range(count)]
    if records and not drawn:
        raise AyaError("mixture: its weights leave no record; raise one of them")
    return drawn
