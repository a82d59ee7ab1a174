"""What a run shows, in one sentence, and the few figures that stand above the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from aya_jax.report.words import (
    METRICS,
    Figure,
    excludes,
    figure_text,
    interval_of,
    label,
    value_of,
)

Seeds = Mapping[str, Mapping[str, Mapping[str, Any]]]
FIELDS = {"win_rate": "under the unused judge", "checker_win_rate": "on correct answers"}
TILES = ("win_rate", "checker_win_rate", "correct", "right_language")


def sentence(final: str, opponent: str, seeds: Seeds) -> str:
    """Say how the final model did against the fixed opponent, and whether that is told apart.

    Both judges have their say, so that a model that only pleases the one is not praised.

    Args:
      final, opponent: names of models.
      seeds: seed to model to metric to the figure over all languages.
    """
    ours, theirs = label(final), label(opponent)
    clauses: list[tuple[str, str]] = []
    for metric, field in FIELDS.items():
        found = [m[final][metric] for m in seeds.values() if metric in m.get(final, {})]
        if found and final != opponent:
            clauses.append(_one(metric, found[0]) if len(found) == 1 else _many(metric, found))
            stance, text = clauses[-1]
            clauses[-1] = (stance, text.format(field=field))
    if not clauses:
        return f"The final model is {ours}; there is no other model to set it against."
    text = f"The recipe’s final model, {ours}, {clauses[0][1]}".replace(
        "{them}", f"the fixed opponent, {theirs},"
    )
    for stance, clause in clauses[1:]:
        joint = " and " if stance == clauses[0][0] else ", but "
        text += joint + clause.replace("{them}", "it")
    counted = ", by 95% intervals that exclude 50%" if len(seeds) > 1 else ""
    return f"{text}{counted}."


def _one(metric: str, figure: Figure) -> tuple[str, str]:
    verb = "is not told apart from"
    if excludes(figure, 0.5):
        verb = "beats" if figure["low"] > 0.5 else "loses to"
    meaning = "includes" if verb.startswith("is") else "excludes"
    value, interval = value_of(metric, figure), interval_of(metric, figure)
    return verb, (
        f"{verb} {{{{them}}}} {{field}} (wins {value} of {figure['n']:,} prompts; the 95% interval "
        f"{interval} {meaning} 50%)"
    )


def _many(metric: str, figures: Sequence[Figure]) -> tuple[str, str]:
    better = sum(figure["low"] > 0.5 for figure in figures)
    worse = sum(figure["high"] < 0.5 for figure in figures)
    rates = ", ".join(value_of(metric, figure) for figure in figures)
    verb = f"beats {{{{them}}}} {{field}} in {better} of {len(figures)} seeds"
    if worse:
        verb += f" and loses in {worse}"
    return f"{better} {worse}", f"{verb} (wins {rates})"


def tiles(final: str, opponent: str, seeds: Seeds) -> list[dict[str, Any]]:
    """Return the final model's figures with their intervals, one line a seed."""
    out = []
    for metric in TILES:
        found = {s: m.get(final, {}).get(metric) for s, m in seeds.items()}
        if not all(found.values()):
            continue
        lines = [
            (f"seed {seed}" if len(found) > 1 else "", value_of(metric, f), interval_of(metric, f))
            for seed, f in found.items()
        ]
        against = [m.get(opponent, {}).get(metric) for m in seeds.values()]
        note = METRICS[metric][1]
        if all(against) and final != opponent:
            note = f"{label(opponent)}: " + ", ".join(
                figure_text(metric, f) if len(against) == 1 else value_of(metric, f)
                for f in against
            )
        out.append({"label": METRICS[metric][0], "lines": lines, "note": note})
    return out
