"""The checkpoints of one training run: whole or absent, checked, and falling back when damaged."""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from aya_jax.checkpoints.store import read_tree, write_tree
from aya_jax.data.files import atomic_directory
from aya_jax.errors import AyaError

log = logging.getLogger(__name__)


class TrainStore:
    """Numbered checkpoints under `directory`, the newest `keep` of them.

    A checkpoint is a folder `step_NNNNNNNN` with the parameters and the rest of the state.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2) -> None:
        self.directory = Path(directory)
        self.keep = keep

    def _place(self, step: int) -> Path:
        return self.directory / f"step_{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps that have a whole checkpoint, oldest first."""
        return sorted(int(path.name[5:]) for path in self.directory.glob("step_*"))

    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint, None if there is none."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any) -> None:
        """Write the whole state or nothing, then drop what is older than the newest `keep`.

        A state is a named tuple with a field `params`; the rest is kept as a list of its leaves.
        """
        with atomic_directory(self._place(step), replace=True) as partial:
            write_tree(partial, "params", state.params)
            write_tree(partial, "rest", _leaves(state._replace(params=None)))
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self._place(old))

    def restore(self, step: int | None, like: Any) -> tuple[int, Any]:
        """Return the step and state of a checkpoint, bit for bit as they were saved.

        Where `step` is None the newest is taken; if it is damaged, the one before, with a warning.

        Raises:
          AyaError: no whole checkpoint is left.
        """
        candidates = [step] if step is not None else self.steps()[::-1]
        problem = AyaError(f"{self.directory}: there is no checkpoint")
        for candidate in candidates:
            try:
                params = read_tree(self._place(candidate), "params", like.params)
                rest = like._replace(params=None)
                leaves = read_tree(self._place(candidate), "rest", _leaves(rest))
            except AyaError as error:
                problem = error
                log.warning("%s; trying the checkpoint before", error)
                continue
            ordered = [leaves[name] for name in sorted(leaves)]
            whole = jax.tree.unflatten(jax.tree.structure(rest), ordered)
            return candidate, whole._replace(params=params)
        raise problem

    def load_params(self, step: int) -> Any:
        """Return the parameters of a checkpoint alone, on the default device.

        Raises:
          AyaError: it is missing or damaged.
        """
        return jax.tree.map(jnp.asarray, read_tree(self._place(step), "params"))


def _leaves(rest: Any) -> dict[str, Any]:
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(rest))}
