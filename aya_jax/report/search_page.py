"""A search for the weights of a merge as one page that needs nothing else, the same for the same search."""

from collections.abc import Mapping, Sequence
from typing import Any

from aya_jax.report import intervals
from aya_jax.report.environment import page_template
from aya_jax.report.words import Figure, number

# What is called what, and how many decimals tell two merges apart; shares are shown in percent.
MEASURES = {
    "loss": ("log-likelihood a token", "minus the loss of the held-out answers, in nats", 4),
    "reward": ("reward", "mean reward of the model's answers", 3),
    "wins": (
        "win rate",
        "share of prompts on which its reward is above the opponent's, ties half",
        3,
    ),
    "correct": ("correct", "share of answers that the checker accepts", 3),
}
SHARES = ("wins", "correct")
SEARCHES = {"grid": "exhaustive grid", "greedy": "greedy soup", "cma_es": "CMA-ES"}
# Rows of the chart; the table has all.
SHOWN = 40


def render_search(content: Mapping[str, Any]) -> str:
    """Return the page of a search.

    Args:
      content: of `search.json`.
    """
    measure = content["measure"]
    name, meaning, decimals = MEASURES[measure]
    trials = [(i, trial) for i, trial in enumerate(content["trials"], start=1)]
    ranked = sorted(
        (each for each in trials if each[1]["figure"]),
        key=lambda each: (-each[1]["figure"]["overall"]["value"], not each[1]["best"]),
    )
    best = next(trial for trial in content["trials"] if trial["best"])
    settings = list(best["settings"])
    chart = intervals.ranking(
        f"{name} of the best merges, with 95% intervals",
        [
            (_merge(trial), trial["figure"]["overall"], "strong" if trial["best"] else "plain")
            for _, trial in ranked[:SHOWN]
        ],
        shown=lambda v, d: _text(measure, v, d),
    )
    return page_template("search.html").render(
        content=content,
        title=f"Weights of a merge: {content['method']} of {', '.join(content['models'])}",
        search=SEARCHES[content["search"]],
        name=name,
        meaning=meaning,
        best=best,
        best_text=_figure(measure, best["figure"]["overall"], decimals),
        weights=list(zip(content["models"], best["weights"], strict=True)),
        chart=chart,
        shown=min(SHOWN, len(ranked)),
        gains=[
            {
                "over": over,
                "overall": _figure(measure, figure["overall"], decimals, sign=True),
                "chart": _by_language(measure, over, figure, content["languages"]),
            }
            for over, figure in content["differences"].items()
        ],
        columns=["trial", *content["models"], *settings, name, "95% interval"],
        rows=[_row(measure, i, trial, decimals) for i, trial in trials],
    )


def _merge(trial: Mapping[str, Any]) -> str:
    weights = " : ".join(f"{weight:.2g}" for weight in trial["weights"])
    return ", ".join(
        [weights, *(f"{name} {value:.2g}" for name, value in trial["settings"].items())]
    )


def _text(measure: str, value: float, decimals: int, *, sign: bool = False) -> str:
    if measure in SHARES:
        return f"{number(100 * value, max(0, decimals - 2), sign=sign)}%"
    return number(value, decimals, sign=sign)


def _figure(measure: str, figure: Figure, decimals: int, *, sign: bool = False) -> str:
    value, low, high = (
        _text(measure, figure[key], decimals, sign=sign) for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def _by_language(
    measure: str, over: str, figure: Mapping[str, Any], languages: Mapping[str, str]
) -> Any:
    rows = [("all", figure["overall"], "strong")]
    rows += [
        (languages.get(code, code), each, "plain") for code, each in figure["by_language"].items()
    ]
    title = f"How far the best merge is above {over}, by language, with 95% intervals"
    return intervals.ranking(
        title, rows, shown=lambda v, d: _text(measure, v, d, sign=True), zero=True
    )


def _row(
    measure: str, place: int, trial: Mapping[str, Any], decimals: int
) -> tuple[bool, Sequence[str]]:
    """Return whether it is the best one, and the cells of a trial."""
    figure = trial["figure"] and trial["figure"]["overall"]
    found = ["no number", ""]
    if figure:
        low, high = (_text(measure, figure[end], decimals) for end in ("low", "high"))
        found = [_text(measure, figure["value"], decimals), f"[{low}, {high}]"]
    weights = [f"{weight:.4g}" for weight in trial["weights"]]
    return trial["best"], [
        str(place),
        *weights,
        *(f"{value:.4g}" for value in trial["settings"].values()),
        *found,
    ]
