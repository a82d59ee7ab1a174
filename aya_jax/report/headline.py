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
    ours = label(final)
    text, stance, them = "", "", f"the fixed opponent, {label(opponent)},"
    for metric, field in FIELDS.items():
        found = [m[final][metric] for m in seeds.values() if metric in m.get(final, {})]
        if not found or final == opponent:
            continue
        told = _one if len(found) == 1 else _many
        verb, clause = told(metric, found, them, field)
        if text:
            text += " and " if verb == stance else ", but "
        text, stance, them = text + clause, verb, "it"
    if not text:
        return f"The final model is {ours}; there is no other model to set it against."
    counted = ", by 95% intervals that exclude 50%" if len(seeds) > 1 else ""
    return f"The recipe’s final model, {ours}, {text}{counted}."


def _one(metric: str, figures: Sequence[Figure], them: str, field: str) -> tuple[str, str]:
    """Return the verb, and the clause about the only seed's figure."""
    (figure,) = figures
    verb, meaning = "is not told apart from", "includes"
    if excludes(figure, 0.5):
        verb, meaning = "beats" if figure["low"] > 0.5 else "loses to", "excludes"
    value, interval = value_of(metric, figure), interval_of(metric, figure)
    return verb, (
        f"{verb} {them} {field} (wins {value} of {figure['n']:,} prompts; the 95% interval "
        f"{interval} {meaning} 50%)"
    )


def _many(metric: str, figures: Sequence[Figure], them: str, field: str) -> tuple[str, str]:
    """Return the count of seeds either way, and the clause about all seeds' figures."""
    better = sum(figure["low"] > 0.5 for figure in figures)
    worse = sum(figure["high"] < 0.5 for figure in figures)
    rates = ", ".join(value_of(metric, figure) for figure in figures)
    losses = f" and loses in {worse}" if worse else ""
    counts = f"{better} of {len(figures)} seeds{losses}"
    return counts, f"beats {them} {field} in {counts} (wins {rates})"


def tiles(final: str, opponent: str, seeds: Seeds) -> list[dict[str, Any]]:
    """Return the final model's figures with their intervals, one line a seed."""
    out = []
    for metric in TILES:
        found = {s: m[final][metric] for s, m in seeds.items() if metric in m.get(final, {})}
        if not found:
            continue
        lines = [
            (f"seed {seed}" if len(seeds) > 1 else "", value_of(metric, f), interval_of(metric, f))
            for seed, f in found.items()
        ]
        note = METRICS[metric][1]
        theirs = [m[opponent][metric] for m in seeds.values() if metric in m.get(opponent, {})]
        if theirs and final != opponent:
            shown = figure_text if len(seeds) == 1 else value_of
            note = f"{label(opponent)}: " + ", ".join(shown(metric, f) for f in theirs)
        out.append({"label": METRICS[metric][0], "lines": lines, "note": note})
    return out
