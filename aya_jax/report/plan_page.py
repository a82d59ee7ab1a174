"""The plan of `aya plan` as one page that needs nothing else, the same for the same plan."""

from collections.abc import Mapping
from typing import Any

from aya_jax.report import plan_rows
from aya_jax.report.environment import page_template
from aya_jax.report.words import duration


def render_plan(plan: Mapping[str, Any]) -> str:
    """Return the page of a plan.

    Args:
      plan: the content of the file that `aya plan --json` writes.
    """
    programs = plan_rows.grouped(plan["stages"])
    bounded = [(p, s) for p, s in programs if p.get("step_seconds_bound") is not None]
    total = plan["total"]
    return page_template("plan.html").render(
        plan=plan,
        title=f"{plan['recipe']} on {plan['topology']}",
        bars=[_bar(program, stages) for program, stages in programs],
        tables=[
            (
                "memory",
                "Memory of a device, GiB",
                plan_rows.MEMORY,
                [plan_rows.memory_row(p, s) for p, s in programs],
            ),
            (
                "bounds",
                "Bounds on time",
                plan_rows.BOUNDS,
                [plan_rows.bounds_row(p, s) for p, s in bounded],
            ),
            (
                "exchanges",
                "What a device sends in one run of a program",
                plan_rows.EXCHANGES,
                [row for p, s in bounded for row in plan_rows.exchange_rows(p, s)],
            ),
        ],
        faults=[line for p, s in programs for line in plan_rows.faults(p, s)],
        summary=plan_rows.summary(plan),
        seconds=duration(total["seconds_bound"]),
        hours=f"{total['chip_hours_bound']:,.1f}",
        cost=None if total["cost_bound"] is None else f"${total['cost_bound']:,.0f}",
        fitting=sum(stage["fits"] for stage in plan["stages"].values()),
    )


def _bar(program: Mapping[str, Any], stages: list[str]) -> dict[str, Any]:
    """Return the parts of a program's memory as shares of the device's, for a bar."""
    name = plan_rows.label(program, stages)
    if program.get("peak_bytes") is None:
        return {"label": name, "parts": [], "text": program.get("reason", ""), "fits": False}
    held = program["hbm_bytes"]
    scale = max(held, program["peak_bytes"])
    arguments = program["argument_bytes"] / scale
    rest = (program["peak_bytes"] - program["argument_bytes"]) / scale
    return {
        "label": name,
        "parts": [("arguments", arguments), ("temporaries", rest)],
        "limit": held / scale,
        "text": f"{program['peak_bytes'] / 2**30:.1f} of {held / 2**30:.0f} GiB",
        "fits": program["fits"],
    }
