"""The plan that is kept: what of it is compared, and the command that makes it anew.

`python tests/planning/golden.py` (from the repository, with the extra `tpu`) writes `golden/`. It is done when
a recipe, a program or the supported release of jax changes, and the difference is looked at.
"""

import io
import json
from importlib.metadata import version
from pathlib import Path

from aya_jax.progress import Terminal
from aya_jax.recipe.plan import plan_recipe

RECIPE, TOPOLOGY = "configs/recipes/expanse_8b.gin", "v5e:8x8"
# With a reward model of its own, so that a reward training is among the programs.
BINDINGS = ["REWARD_MODEL = None"]
PLACE = Path(__file__).parent / "golden" / "expanse_8b_v5e_8x8.json"
# What follows from the configuration alone, and what from the compiler.
EXACT = (
    "name",
    "program",
    "mesh",
    "fits",
    "tokens",
    "model_flops",
    "executed_flops",
    "runs",
    "runs_basis",
)
COMPILED = ("argument_bytes", "peak_bytes", "step_seconds_bound")


def make():
    """Return the plan in short."""
    out = Terminal(io.StringIO())
    return shortened(plan_recipe([RECIPE], BINDINGS, topology=TOPOLOGY, terminal=out))


def shortened(told):
    """Return what is kept of a plan: each program once, under the first stage that runs it."""
    programs, seen = {}, set()
    for stage, found in told["stages"].items():
        for program in found["programs"]:
            kept = {key: program.get(key) for key in (*EXACT, *COMPILED)}
            kept["collectives"] = {
                f"{each['kind']} {' '.join(each['axes'])}": [each["count"], each["sent_bytes"]]
                for each in program.get("collectives", ())
            }
            text = json.dumps(kept, sort_keys=True)
            if text not in seen:
                seen.add(text)
                programs[f"{stage} ({program['name']})"] = kept
    return {
        "versions": {name: version(name) for name in ("jax", "libtpu")},
        "stages": {name: found["fits"] for name, found in told["stages"].items()},
        "chip_hours_bound": told["total"]["chip_hours_bound"],
        "programs": programs,
    }


if __name__ == "__main__":
    PLACE.parent.mkdir(exist_ok=True)
    PLACE.write_text(json.dumps(make(), indent=1) + "\n")
