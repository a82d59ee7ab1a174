"""`aya run`: a recipe's gin file to a run directory with a report, in one seed or in several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

from aya_jax.data.files import atomic_write
from aya_jax.errors import AyaError
from aya_jax.progress import Terminal
from aya_jax.recipe.expanse import expanse
from aya_jax.recipe.run_directory import RunDirectory
from aya_jax.recipe.settings import check_scopes, config_text, effective_settings, parse_gin
from aya_jax.recipe.stages import execute
from aya_jax.recipe.study import compare
from aya_jax.recipe.summary import Finished, report_of, show, write_report
from aya_jax.sharding.processes import by_lead
from aya_jax.training.sinks import metric_sinks, require_services

# Scopes of stages that a recipe may leave out; their settings may stand in its file all the same.
OPTIONAL_SCOPES = ("tokenizer", "base", "reward_prompts", "reward", "judge", "mixed")


@gin.configurable
def study(*, seeds: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the values of the macro `SEED` in which a study runs its recipe; none for one run."""
    return tuple(seeds)


def run_recipe(
    files: Sequence[str], bindings: Sequence[str], *, run_dir: str | Path, terminal: Terminal
) -> Path:
    """Run every stage that is not whole yet and write the report; return the report's page.

    A study (`study.seeds`) is a run for each seed, in `run_dir/seed_N`, and a report over all. Several
    processes run it together; the lead writes what is not parameters.

    Raises:
      AyaError: the configuration is wrong, the directory is in use, or a stage failed.
    """
    gin.clear_config()
    parse_gin(files, bindings)
    seeds, name = study(), Path(files[0]).stem
    if not seeds:
        report, page = _run(name, Path(run_dir), terminal)
        show(report, terminal)
        terminal.say(f"report: {page}")
        return page
    reports = {}
    for seed in seeds:
        gin.clear_config()
        parse_gin(files, [*bindings, f"SEED = {seed}"])
        terminal.say(f"seed {seed}")
        reports[seed], _ = _run(name, Path(run_dir, f"seed_{seed}"), terminal)
        show(reports[seed], terminal)
    runs = {seed: Finished.open(Path(run_dir, f"seed_{seed}")) for seed in seeds}
    page = _write(Path(run_dir), compare(reports, runs))
    terminal.say(f"report: {page}")
    return page


def _run(name: str, run_dir: Path, terminal: Terminal) -> tuple[dict[str, Any], Path]:
    recipe = expanse()
    scopes = dict.fromkeys(stage.scope for stage in recipe.stages)
    check_scopes([*OPTIONAL_SCOPES, *recipe.left_out, *scopes])
    for scope in scopes:
        require_services(effective_settings([metric_sinks], scope)["metrics.sinks"])
    with RunDirectory(run_dir) as run:
        run.state["recipe"] = {
            "name": name,
            "seed": _seed(),
            "stages": [stage.name for stage in recipe.stages],
            "steps": list(recipe.steps),
            "opponent": recipe.opponent,
        }
        run.save()
        execute(recipe.stages, run, terminal)
        by_lead(lambda: atomic_write(run.path / "config.gin", config_text()))
        report = report_of(Finished(run.path, run.state))
        return report, _write(run.path, report)


def _write(run_dir: Path, report: dict[str, Any]) -> Path:
    return Path(by_lead(lambda: str(write_report(run_dir, report))))


def _seed() -> int:
    try:
        return int(gin.query_parameter("SEED/gin.macro.value"))
    except ValueError:
        raise AyaError("run: the recipe has no SEED; add a line such as `SEED = 0`") from None
