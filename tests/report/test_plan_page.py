"""The page of a plan: well formed, escaped, complete, and without anything from elsewhere."""

import pytest

from aya_jax.report import plan_rows
from aya_jax.report.plan_page import render_plan

GIB = 1 << 30
NASTY = "<b>one</b>"


def program(name, **changes):
    return {
        "name": name,
        "program": {"rows": 64, "length": 8192},
        "mesh": {"data": 1, "fsdp": 8, "tensor": 4},
        "fits": True,
        "hbm_bytes": 16 * GIB,
        "peak_bytes": 9 * GIB,
        "over_bytes": 0,
        "argument_bytes": 2 * GIB,
        "temp_bytes": 7 * GIB,
        "largest_arrays": [{"bytes": 3 * GIB, "shape": "bf16[256000,4096]"}],
        "collectives": [
            {"kind": "all-gather", "axes": ["fsdp"], "count": 64, "bytes": GIB, "sent_bytes": GIB}
        ],
        "step_seconds_bound": 2.5,
        "bound_by": "compute",
        "tokens_per_second_bound": 200_000.0,
        "mfu_bound": 0.5,
        "runs": 100,
        "runs_basis": "at most",
        "seconds_bound": 250.0,
        **changes,
    }


@pytest.fixture
def plan():
    large = program(
        "training",
        fits=False,
        peak_bytes=20 * GIB,
        over_bytes=6 * GIB,
        step_seconds_bound=None,
        seconds_bound=None,
    )
    undivided = {
        "name": "training",
        "fits": False,
        "reason": "train.batch_size 64 does not divide",
        "mesh": {"fsdp": 96},
        "peak_bytes": None,
        "step_seconds_bound": None,
        "runs": None,
        "runs_basis": "unknown",
        "seconds_bound": None,
    }
    stages = {
        "arbitrage_sft.west": {"fits": True, "programs": [program("training")]},
        "arbitrage_sft.east": {"fits": True, "programs": [program("training")]},
        "offline_dpo.west": {"fits": False, "programs": [large]},
        NASTY: {"fits": False, "programs": [undivided]},
    }
    return {
        "recipe": NASTY,
        "topology": "v5e:4x8",
        "chips": 32,
        "chip": {
            "name": "v5e",
            "price": 1.2,
            "price_source": "a seller",
            "price_read": "2026-11-25",
        },
        "fill": 0.9,
        "fits": False,
        "stages": stages,
        "without_accelerator": ["prompts"],
        "assumed_models": ["base"],
        "total": {
            "seconds_bound": 500.0,
            "chip_hours_bound": 4.4,
            "cost_bound": 5.3,
            "unknown_stages": ["offline_dpo.west"],
            "at_most_stages": ["arbitrage_sft.west"],
        },
        "recommendation": {
            "training": {
                "found": True,
                "compiled": True,
                "settings": {"device_mesh.tensor": 8},
                "peak_bytes": 8 * GIB,
                "step_seconds_bound": 3.0,
            },
            "sampling": {"found": False, "reason": "no mesh holds it"},
        },
        "versions": {"jax": "0.10.2"},
    }


def test_page_is_well_formed_and_needs_nothing_else(plan, parse):
    page = render_plan(plan)
    root = parse(page)
    for element in root.iter():
        assert element.tag not in ("link", "img", "iframe", "script", "object")
    assert "://" not in page and NASTY not in page and "&lt;b&gt;one" in page
    ids = {e.get("id") for e in root.iter() if e.get("id")}
    assert {"faults", "bars", "memory", "bounds", "exchanges", "summary"} <= ids
    assert "nothing was run" in page and "2 of 4 stages fit" in page


def test_equal_programs_are_one_row_with_their_stages_counted(plan):
    rows = [plan_rows.memory_row(p, s) for p, s in plan_rows.grouped(plan["stages"])]
    assert [row[0] for row in rows][:2] == ["training: arbitrage_sft x2", "training: offline_dpo"]
    assert rows[0][1:] == ["fsdp=8 tensor=4", "2.00", "7.00", "9.00", "16.00", "yes"]


def test_what_does_not_fit_is_told_with_its_size_and_what_is_large_in_it(plan):
    lines = [line for p, s in plan_rows.grouped(plan["stages"]) for line in plan_rows.faults(p, s)]
    assert lines[0].startswith("training: offline_dpo: does not fit, by 6.00 GiB")
    assert "bf16[256000,4096] 3.00 GiB" in lines[1]
    assert "does not divide" in lines[2]


def test_the_summary_names_what_it_rests_on(plan):
    text = "\n".join(plan_rows.summary(plan))
    for words in (
        "taken to be of the sizes in the gin file: base",
        "at least 4.4 chip-hours, 5 US dollars at 1.20",
        "a seller, read 2026-11-25",
        "without stages whose length is unknown: offline_dpo.west",
        "device_mesh.tensor = 8",
        "search for sampling: no mesh holds it",
    ):
        assert words in text
    plan["total"]["cost_bound"] = None
    assert "give --price" in "\n".join(plan_rows.summary(plan))


def test_a_bound_is_never_written_as_a_figure_of_a_run(plan):
    row = plan_rows.bounds_row(program("training"), ["arbitrage_sft.west"])
    assert row == [
        "training: arbitrage_sft",
        ">= 2.5",
        "compute",
        "<= 200,000",
        "<= 50%",
        "<= 100",
        "0.07",
    ]
