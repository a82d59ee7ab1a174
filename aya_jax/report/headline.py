"""What a run shows, in one sentence, and the few figures that stand above the page."""

from collections.abc import Mapping
from typing import Any

from aya_jax.report.words import (
    METRICS,
    excludes,
    figure_text,
    interval_of,
    label,
    value_of,
)

Seeds = Mapping[str, Mapping[str, Mapping[str, Any]]]
TILES = ("win_rate", "checker_win_rate", "correct", "right_language")


def sentence(final: str, opponent: str, seeds: Seeds) -> str:
    """Say how the final model did against the fixed opponent, and whether that is told apart.

    Args:
      final, opponent: names of models.
      seeds: seed to model to metric to the figure over all languages.
    """
    ours, theirs = label(final), label(opponent)
    found = {s: m[final]["win_rate"] for s, m in seeds.items() if "win_rate" in m.get(final, {})}
    if final == opponent or not found:
        return f"The final model is {ours}; there is no other model to set it against."
    if len(found) == 1:
        figure = next(iter(found.values()))
        verb = "does about as well as"
        meaning = "includes 50%, so the two are not told apart"
        if excludes(figure, 0.5):
            verb = "beats" if figure["low"] > 0.5 else "loses to"
            meaning = "excludes 50%"
        return (
            f"The recipe’s final model, {ours}, {verb} the fixed opponent, {theirs}, with a win rate of "
            f"{value_of('win_rate', figure)} on {figure['n']} prompts; the 95% interval "
            f"{interval_of('win_rate', figure)} {meaning}."
        )
    better = sum(figure["low"] > 0.5 for figure in found.values())
    worse = sum(figure["high"] < 0.5 for figure in found.values())
    rates = ", ".join(value_of("win_rate", figure) for figure in found.values())
    text = (
        f"The recipe’s final model, {ours}, beats the fixed opponent, {theirs}, in {better} of {len(found)} seeds with "
        f"a 95% interval that excludes 50% (win rates {rates})"
    )
    return text + (f", and loses to it in {worse}." if worse else ".")


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
