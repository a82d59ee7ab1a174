"""Tables whose cells are coloured by their values: models against languages or kinds of task."""

from collections.abc import Mapping, Sequence
from typing import Any

from aya_jax.report.words import METRICS, REWARDS, WIN_RATES, excludes, figure_text, label, number

LEVELS = 10


def heat_map(
    models: Mapping[str, Mapping[str, Any]],
    metric: str,
    columns: Sequence[str],
    names: Mapping[str, str],
    *,
    part: str = "by_language",
) -> dict[str, Any]:
    """Return the rows of one metric's table for the template.

    A cell has the text, the colour's class, whether it is told apart from one half (win rates), and
    its whole figure as a title. Models without the metric are left out; a missing cell is None.

    Args:
      models: model to metric to figures.
      metric: of `words.METRICS`.
      columns: languages or kinds, in order.
      names: of the columns.
      part: the figures' key that has the columns.
    """
    shown = {name: figures[metric] for name, figures in models.items() if metric in figures}
    every = [f["value"] for figure in shown.values() for f in figure.get(part, {}).values()]
    low, high = (min(every), max(every)) if metric in REWARDS and every else (0.0, 1.0)

    def cell(figure: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
        if figure is None:
            return None
        share = (figure["value"] - low) / (high - low) if high > low else 0.5
        level = min(LEVELS, max(0, round(LEVELS * share)))
        return {
            "text": number(figure["value"], 1)
            if metric in REWARDS
            else f"{100 * figure['value']:.0f}",
            "class": f"{'d' if metric in WIN_RATES else 'h'}{level}",
            "sure": metric in WIN_RATES and excludes(figure, 0.5),
            "title": f"{name}: {figure_text(metric, figure)}, n = {figure['n']}",
        }

    return {
        "metric": metric,
        "label": METRICS[metric][0],
        "meaning": METRICS[metric][1],
        "columns": [{"code": code, "name": names.get(code, code)} for code in columns],
        "rows": [
            {
                "model": model,
                "label": label(model),
                "overall": cell(figures["overall"], f"{label(model)}, all"),
                "cells": [
                    cell(
                        figures.get(part, {}).get(code), f"{label(model)}, {names.get(code, code)}"
                    )
                    for code in columns
                ],
            }
            for model, figures in shown.items()
        ],
    }
