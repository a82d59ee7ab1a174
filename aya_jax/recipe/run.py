"""`aya run`: a recipe's gin file to a run directory with a report."""

from collections.abc import Sequence
from pathlib import Path

import gin

from aya_jax.data.files import atomic_write
from aya_jax.progress import Terminal
from aya_jax.recipe.expanse import expanse
from aya_jax.recipe.run_directory import RunDirectory
from aya_jax.recipe.settings import check_scopes, parse_gin
from aya_jax.recipe.stages import execute

# Scopes of stages that a recipe may leave out; their settings may stand in its file all the same.
OPTIONAL_SCOPES = ("tokenizer", "base", "reward", "judge", "mixed")


def run_recipe(
    files: Sequence[str], bindings: Sequence[str], *, run_dir: str | Path, terminal: Terminal
) -> Path:
    """Run every stage that is not whole yet; return the run directory.

    Raises:
      AyaError: the configuration is wrong, the directory is in use, or a stage failed.
    """
    parse_gin(files, bindings)
    stages = expanse()
    check_scopes([*OPTIONAL_SCOPES, *(stage.scope for stage in stages)])
    with RunDirectory(run_dir) as run:
        execute(stages, run, terminal)
        atomic_write(run.path / "config.gin", gin.operative_config_str())
        return run.path
