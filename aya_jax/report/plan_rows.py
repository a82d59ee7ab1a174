"""A plan in words and rows: what the terminal and the page both show."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Plan = Mapping[str, Any]
GIB = 2.0**30


MEMORY = ("program", "mesh", "arguments", "temporaries", "peak", "of", "fits")
BOUNDS = ("program", "seconds a run", "limited by", "tokens/s", "MFU", "runs", "hours")
EXCHANGES = ("program", "kind", "axes", "times", "GiB sent")


def grouped(stages: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Return each distinct program once, with the stages that run it."""
    found: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for name, stage in stages.items():
        for program in stage["programs"]:
            same = {
                k: v
                for k, v in program.items()
                if not k.startswith("runs") and k != "seconds_bound"
            }
            found.setdefault(repr(same), (program, []))[1].append(name)
    return list(found.values())


def stage_names(names: Sequence[str]) -> str:
    """Return names in short: those of the clusters of one model are counted."""
    models: dict[str, int] = {}
    for name in dict.fromkeys(names):
        head, _, tail = name.partition(".")
        key = name if tail == "samples" or head == "evaluate" else head
        key = re.sub(r"^evaluate\..*", "evaluate", re.sub(r"_\d+(?=$|\.)", "", key))
        models[key] = models.get(key, 0) + 1
    return ", ".join(name if n == 1 else f"{name} x{n}" for name, n in models.items())


def label(program: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return what a program is called: its work, and the stages that run it."""
    return f"{program['name']}: {stage_names(names)}"


def mesh_text(mesh: Mapping[str, int]) -> str:
    """Return the axes of a mesh that are split."""
    return " ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "1 device"


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f}"


def memory_row(program: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the cells of `MEMORY`."""
    sizes = [_gib(program.get(key)) for key in ("argument_bytes", "temp_bytes", "peak_bytes")]
    fits = "yes" if program["fits"] else "NO"
    return [
        label(program, names),
        mesh_text(program["mesh"]),
        *sizes,
        _gib(program.get("hbm_bytes")),
        fits,
    ]


def bounds_row(program: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the cells of `BOUNDS`."""
    runs = "unknown" if program["runs"] is None else f"{program['runs']:,}"
    if program["runs_basis"] == "at most":
        runs = f"<= {runs}"
    spent = program["seconds_bound"]
    return [
        label(program, names),
        f">= {program['step_seconds_bound']:.3g}",
        program["bound_by"],
        f"<= {program['tokens_per_second_bound']:,.0f}",
        f"<= {100 * program['mfu_bound']:.3g}%",
        runs,
        "-" if spent is None else f"{spent / 3600:.2f}",
    ]


def exchange_rows(program: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Return the rows of `EXCHANGES`, each with its cells; what is below a hundredth of a GiB is left out."""
    return [
        [
            label(program, names),
            each["kind"],
            " ".join(each["axes"]),
            f"{each['count']:,}",
            _gib(each["sent_bytes"]),
        ]
        for each in program["collectives"]
        if each["sent_bytes"] > GIB / 100
    ]


def faults(program: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Say of a program that does not fit by how much, and what is largest in it."""
    if program["fits"]:
        return []
    if "reason" in program:
        return [f"{label(program, names)}: {program['reason']}"]
    most = program["peak_bytes"] - program["over_bytes"]
    lines = [
        f"{label(program, names)}: does not fit, by {_gib(program['over_bytes'])} GiB: it needs "
        f"{_gib(program['peak_bytes'])} of the {_gib(most)} GiB that a device should give"
    ]
    largest = ", ".join(
        f"{each['shape']} {_gib(each['bytes'])} GiB" for each in program["largest_arrays"][:3]
    )
    return [*lines, f"  its largest arrays: {largest}"] if largest else lines


def summary(plan: Plan) -> list[str]:
    """Return the lines after the tables: totals, what they rest on, and the recommendation."""
    total, chip = plan["total"], plan["chip"]
    lines = []
    if plan["assumed_models"]:
        lines.append(
            f"not here, so taken to be of the sizes in the gin file: {', '.join(plan['assumed_models'])}"
        )
    hours = f"at least {total['chip_hours_bound']:,.1f} chip-hours"
    if total["cost_bound"] is not None:
        hours += f", {total['cost_bound']:,.0f} US dollars at {chip['price']:.2f} a chip-hour"
        hours += f" ({chip['price_source']}{', read ' + chip['price_read'] if chip['price_read'] else ''})"
    else:
        hours += "; no price of this chip is published: give --price"
    lines.append(f"the whole recipe as bounded: {hours}")
    if total["at_most_stages"]:
        lines.append(
            "  counted with the most records that the settings allow; the files are not here"
        )
    if total["unknown_stages"]:
        lines.append(
            f"  without stages whose length is unknown: {', '.join(total['unknown_stages'])}"
        )
    return lines + advice(plan)


def advice(plan: Plan) -> list[str]:
    """Return what the search found, as gin bindings."""
    lines = []
    for name, found in plan["recommendation"].items():
        if not found["found"]:
            lines.append(
                f"search for {name}: {found['reason']}; take more chips, or ones with more memory"
            )
            continue
        bindings = "; ".join(f"{key} = {value!r}" for key, value in found["settings"].items())
        if found["compiled"]:
            figures = f"compiled, {_gib(found['peak_bytes'])} GiB, at least {found['step_seconds_bound']:.3g} s a run"
            lines.append(f"search for {name}: the best that fits ({figures}): {bindings}")
        else:
            guess = (
                f"about {_gib(found['guessed_bytes'])} GiB, {found['guessed_seconds']:.3g} s a run"
            )
            lines.append(f"worth trying for {name}, by arithmetic alone ({guess}): {bindings}")
    return lines
