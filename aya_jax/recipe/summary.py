"""`report.json` and `report.html` of a run, made from what its stages left; see docs/architecture.md."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aya_jax.compat import versions
from aya_jax.data.files import atomic_write, stable_hash
from aya_jax.data.languages import LANGUAGES
from aya_jax.data.records import Record, read_records
from aya_jax.errors import AyaError
from aya_jax.evaluation.evaluate import summary
from aya_jax.metrics import read_history
from aya_jax.progress import Terminal

RECORDS = "records.jsonl"
EVALUATE = "evaluate."
DIAGNOSIS = "diagnosis."
CURVES = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")
SAMPLES_PER_LANGUAGE = 2
METRICS = {
    "correct": "correct",
    "right_language": "right language",
    "win_rate": "win rate",
    "checker_win_rate": "checker win rate",
    "unused_reward": "unused reward",
}


@dataclass(frozen=True)
class Finished:
    """What is left of a finished run."""

    path: Path
    state: Mapping[str, Any]

    @staticmethod
    def open(path: str | Path) -> "Finished":
        """Read `run.json`.

        Raises:
          AyaError: there is none, or the run did not reach its evaluation yet.
        """
        place = Path(path)
        try:
            state = json.loads((place / "run.json").read_text("utf-8"))
        except (OSError, ValueError):
            raise AyaError(f"{place}: is no run directory (no readable run.json)") from None
        run = Finished(place, state)
        missing = [
            name for name in state.get("recipe", {}).get("stages", [""]) if not run.has(name)
        ]
        if missing:
            raise AyaError(f"{place}: the run is not finished; `aya run` goes on with it")
        return run

    def has(self, stage: str) -> bool:
        """Whether a stage is whole."""
        return stage in self.state["stages"] and self.stage(stage).is_dir()

    def stage(self, name: str) -> Path:
        """Return a stage's folder."""
        return self.path / "stages" / name

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe's `name`, `seed`, `stages`, `steps` and `opponent`."""
        return self.state["recipe"]

    @property
    def evaluated(self) -> list[str]:
        """The evaluated models, in the recipe's order."""
        names = self.recipe["stages"]
        return [n.removeprefix(EVALUATE) for n in names if n.startswith(EVALUATE)]

    def marked(self, model: str) -> list[Record]:
        """Return a model's marked answers."""
        return read_records(self.stage(f"{EVALUATE}{model}") / RECORDS)


def report_of(run: Finished) -> dict[str, Any]:
    """Return the content of `report.json`: the same for the same results, but for `seconds`."""
    recipe = run.recipe
    opponent, steps = recipe["opponent"], list(recipe["steps"])
    marked = {name: run.marked(name) for name in run.evaluated}
    entries = {name: run.state["stages"][name] for name in recipe["stages"]}
    return {
        "recipe": recipe["name"],
        "seed": recipe["seed"],
        "base": steps[0],
        "final": steps[-1],
        "opponent": opponent,
        "steps_of_recipe": [steps[0], opponent, *steps[1:]],
        "models": {name: summary(rows, marked[opponent]) for name, rows in marked.items()},
        "stages": [
            {"name": name, "seconds": entry["seconds"], "figures": entry["figures"]}
            for name, entry in entries.items()
        ],
        "routing": {
            name.removeprefix("route."): entry["figures"]["routing"]
            for name, entry in entries.items()
            if name.startswith("route.")
        },
        "reward_models": {
            name: entries[name]["figures"]["held_out_accuracy"]
            for name in ("reward", "judge")
            if "held_out_accuracy" in entries.get(name, {}).get("figures", {})
        },
        "diagnosis": _diagnosis(run),
        "history": _history(run),
        "samples": _samples(marked, [*run.evaluated]),
        "lineage": _lineage(run),
        "languages": {
            code: {"name": language.name, "direction": language.direction}
            for code, language in LANGUAGES.items()
        },
        "settings": (run.path / "config.gin").read_text("utf-8"),
        "versions": versions(),
    }


def _diagnosis(run: Finished) -> dict[str, Any]:
    """Return what was found of the models of the clusters, by the model that they were merged into."""
    names = [n for n in run.recipe["stages"] if n.startswith(DIAGNOSIS)]
    return {
        name.removeprefix(DIAGNOSIS): json.loads(
            (run.stage(name) / "diagnosis.json").read_text("utf-8")
        )
        for name in names
    }


def _history(run: Finished) -> dict[str, dict[str, list[list[float]]]]:
    history = {}
    for name in run.recipe["stages"]:
        curves = read_history(run.stage(name))
        kept = {metric: curves[metric] for metric in CURVES if metric in curves}
        if kept:
            history[name] = {
                metric: [[step, float(f"{value:.6g}")] for step, value in points]
                for metric, points in kept.items()
            }
    return history


def _samples(marked: Mapping[str, Sequence[Record]], models: Sequence[str]) -> list[Record]:
    """A few prompts of each language, drawn without looking at the answers."""
    rows = next(iter(marked.values()))
    by_language: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_language.setdefault(row.get("language", "und"), []).append(index)
    out = []
    for code in sorted(by_language):
        drawn = sorted(by_language[code], key=lambda i: stable_hash("sample", rows[i]["prompt"]))
        for index in drawn[:SAMPLES_PER_LANGUAGE]:
            fields = ("language", "answer_language", "kind", "prompt", "answers")
            shown = {name: rows[index][name] for name in fields if name in rows[index]}
            shown["completions"] = {
                model: {
                    "text": marked[model][index]["completion"],
                    **{
                        metric: marked[model][index][metric]
                        for metric in ("correct", "right_language", "reward", "unused_reward")
                        if metric in marked[model][index]
                    },
                }
                for model in models
            }
            out.append(shown)
    return out


def _lineage(run: Finished) -> dict[str, dict[str, Any]]:
    """Return what made each model: its stage, method, parents and their weights."""
    lineage = {}
    for name in run.recipe["stages"]:
        file = run.stage(name) / "lineage.json"
        if file.exists():
            content = json.loads(file.read_text("utf-8"))
            parents = [{"path": p["path"], "weight": p["weight"]} for p in content["parents"]]
            lineage[name] = {
                "stage": name,
                "method": content["method"],
                "weights": [p["weight"] for p in parents],
                "parents": parents,
            }
    return lineage


def write_report(path: Path, report: Mapping[str, Any]) -> Path:
    """Write `report.json` and `report.html` into a folder; return the path of the page."""
    from aya_jax.report.html import render

    text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False)
    atomic_write(path / "report.json", text + "\n")
    atomic_write(path / "report.html", render(report))
    return path / "report.html"


def write_summary(run_dir: str | Path) -> Path:
    """Write the report of a finished run; return the path of the page.

    Raises:
      AyaError: there is no run, or it is not finished.
    """
    run = Finished.open(run_dir)
    return write_report(run.path, report_of(run))


def show(report: Mapping[str, Any], terminal: Terminal) -> None:
    """Print the final table: every model's figures with their 95% intervals."""
    shown = [m for m in METRICS if any(m in figures for figures in report["models"].values())]
    rows = [
        (name, *(_cell(figures.get(metric), metric) for metric in shown))
        for name, figures in report["models"].items()
    ]
    title = f"{report['recipe']}: {report['final']} against {report['opponent']}, 95% intervals"
    terminal.table(title, ("model", *(METRICS[m] for m in shown)), rows)


def _cell(figure: Mapping[str, Any] | None, metric: str) -> str:
    if figure is None:
        return "-"
    overall = figure["overall"]
    if metric == "unused_reward":
        return f"{overall['value']:.2f} [{overall['low']:.2f}, {overall['high']:.2f}]"
    value, low, high = (100 * overall[key] for key in ("value", "low", "high"))
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"
