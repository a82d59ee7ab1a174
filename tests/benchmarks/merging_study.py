"""What merging is worth, as tables: every model of the merging study, at every size, in every language.

    python tests/benchmarks/merging_study.py RUN... --page docs/results/merging.md

Reads `report.json` of finished runs of one study, the smallest model first (`make study-merging` makes them), and
writes the page. Intervals are the report's: 95%, bootstrap over the prompts.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aya_jax.data.files import atomic_write

MODELS = {
    "arbitrage_sft": "linear",
    "slerp_merge": "SLERP",
    "ties_merge": "TIES",
    "dare_ties_merge": "DARE-TIES",
    "unmerged": "no merge",
    "mixed_sft": "data mixed",
}
METRICS = {"correct": "Correct answers, %", "unused_reward": "Reward of the unused judge"}
HEAD = """\
# What merging is worth

`make study-merging` makes this page. Each language cluster has an SFT model of its own; the rows are their merges, all of
equal weights; *no merge* is the mean over the four models, each asked in all languages; *data mixed* is one model
trained on the data of all clusters, for as many steps as the four together. Three seeds, each with its own base, teachers
and reward models. Intervals are 95%, bootstrap over the prompts, of the mean over the seeds; a language has 40 prompts.
SLERP of four models is their Karcher mean.
"""


def shown(metric: str, figure: Mapping[str, Any], *, sign: bool = False) -> str:
    """Return a figure with its interval."""
    scale, form = (100, ".1f") if metric == "correct" else (1, ".2f")
    value = f"{scale * figure['value']:{'+' if sign else ''}{form}}"
    return f"{value} [{scale * figure['low']:{form}}, {scale * figure['high']:{form}}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(reports: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the parts of the page; the reports are by what to call them."""
    yield HEAD
    for metric, title in METRICS.items():
        yield f"## {title}\n"
        rows = [
            [
                name,
                *(
                    shown(metric, report["pooled"][model][metric]["overall"])
                    for report in reports.values()
                ),
            ]
            for model, name in MODELS.items()
        ]
        yield table(["", *reports], rows) + "\n"
        yield "The linear merge above the other one, prompt by prompt, in each seed:\n"
        rows = []
        for model, name in list(MODELS.items())[1:]:
            row = [name]
            for report in reports.values():
                (found,) = (
                    each["difference"]
                    for each in report["comparisons"]
                    if each["metric"] == metric and each["arms"] == ["arbitrage_sft", model]
                )
                row.append("; ".join(shown(metric, f, sign=True) for f in found.values()))
            rows.append(row)
        yield table(["", *reports], rows) + "\n"
    for name, report in reports.items():
        for metric, title in METRICS.items():
            yield f"## {title}, by language: {name}\n"
            pooled = {model: report["pooled"][model][metric]["by_language"] for model in MODELS}
            rows = [
                [told["name"], *(shown(metric, pooled[model][code]) for model in MODELS)]
                for code, told in report["languages"].items()
                if code in pooled["arbitrage_sft"]
            ]
            yield table(["", *MODELS.values()], rows) + "\n"


def name_of(report: Mapping[str, Any]) -> str:
    """Return what to call a run: its recipe, and its models' parameters."""
    entries = report["diagnosis"]["arbitrage_sft"]["all"]["entries"]
    return f"{report['recipe']}, {entries / 1e6:.1f} million parameters"


def main() -> None:
    """Read the reports, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, required=True)
    args = parser.parse_args()
    read = [json.loads((run / "report.json").read_text("utf-8")) for run in args.runs]
    atomic_write(args.page, "\n".join(page({name_of(report): report for report in read})))


if __name__ == "__main__":
    main()
