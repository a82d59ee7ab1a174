"""The checkpoints of one training run: whole or absent, checked, and falling back when damaged."""

import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from aya_jax.checkpoints.store import (
    TreeWriter,
    check_files,
    leaf_name,
    read_tree,
    restore_tree,
    stored_shapes,
)
from aya_jax.data.files import commit_directory, told_plainly
from aya_jax.errors import AyaError
from aya_jax.sharding.processes import by_lead, from_lead, is_lead, together

log = logging.getLogger(__name__)

PARTS = ("params", "rest")


class TrainStore:
    """Numbered checkpoints under `directory`, written in the background.

    A checkpoint is a folder `step_NNNNNNNN` with the parameters and the rest of the state, which any
    number of processes on any mesh can read. With several processes `directory` is on a file system
    that all of them see, and all of them call every method.
    """

    def __init__(
        self, directory: str | Path, *, keep: int = 2, keep_every: int | None = None
    ) -> None:
        """Take the place of the checkpoints.

        Args:
          directory: where; made at the first save.
          keep: how many of the newest stay.
          keep_every: the steps that it divides stay too, if given.
        """
        self.directory = Path(directory)
        self.keep = keep
        self.keep_every = keep_every
        self._damaged: set[int] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None

    def _place(self, step: int) -> Path:
        return self.directory / f"step_{step:08d}"

    def _steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.directory.glob("step_*"))

    def steps(self) -> list[int]:
        """Return the steps that have a whole checkpoint, oldest first, as the lead sees them.

        Raises:
          AyaError: see `wait`.
        """
        self.wait()
        return from_lead(self._steps())

    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint, None if there is none."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any) -> None:
        """Copy the state off the devices, and write it in the background: all of it, or nothing.

        Returns when it is copied; the caller may donate it. Host memory holds that copy, of this
        process's shards, until it is written. When it is, what the policy does not keep is dropped. A
        state is a named tuple with a field `params`; the rest is kept by the names of its leaves.

        Raises:
          AyaError: the save before failed, or this one cannot begin; see `wait`.
        """
        self.wait()
        trees = {"params": state.params, "rest": _named(state._replace(params=None))}
        partial = Path(by_lead(lambda: str(self._begin(step))))
        try:
            writer = TreeWriter(partial, trees)
        except BaseException:
            _clear(partial)
            raise
        self._saving = self._thread.submit(self._finish, step, writer)

    def wait(self) -> None:
        """Wait until all that was saved is on the disk.

        Raises:
          AyaError: the disk is full, or not writable; the checkpoints before are as they were.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Wait as `wait` does, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _begin(self, step: int) -> Path:
        """Clear away what was not whole when its process died, and make the folder to be filled."""
        place = self._place(step)
        with told_plainly(place):
            self.directory.mkdir(parents=True, exist_ok=True)
            for left in self.directory.glob(".step_*"):
                shutil.rmtree(left)
            partial = place.with_name(f".{place.name}.{os.getpid()}.tmp")
            partial.mkdir()
        return partial

    def _finish(self, step: int, writer: TreeWriter) -> None:
        try:
            writer.finish()
            together(
                "checkpoint whole",
                lambda: self._commit(step, writer.directory) if is_lead() else None,
            )
        except BaseException:
            _clear(writer.directory)
            raise

    def _commit(self, step: int, partial: Path) -> None:
        with told_plainly(self._place(step)):
            commit_directory(partial, self._place(step), replace=True)
            self._damaged.discard(step)
            steps = self._steps()
            newest = [each for each in steps if each not in self._damaged][-self.keep :]
            for old in steps:
                forever = self.keep_every is not None and old % self.keep_every == 0
                if old not in newest and not (forever and old not in self._damaged):
                    self._drop(old)

    def _drop(self, step: int) -> None:
        """Remove a checkpoint; killed at it, we leave no half of one under its name."""
        place = self._place(step)
        dropped = place.with_name(f".{place.name}.{os.getpid()}.old")
        os.rename(place, dropped)
        shutil.rmtree(dropped)

    def restore(self, step: int | None, like: Any) -> tuple[int, Any]:
        """Return the step and state of a checkpoint, bit for bit as they were saved.

        Where `step` is None the newest is taken; if it is damaged, the one before, with a warning, the
        same one in all processes.

        Args:
          step: which, or None.
          like: a state of arrays or `ShapeDtypeStruct`s, on whose shardings it is restored: another
            mesh than it was saved from, or other devices, will do.

        Raises:
          AyaError: no whole checkpoint is left, or it is of another model or optimizer.
        """
        self.wait()
        problem = AyaError(f"{self.directory}: there is no checkpoint")
        for candidate in [step] if step is not None else self.steps()[::-1]:
            place = self._place(candidate)
            try:
                for name in PARTS:
                    check_files(place, name)
            except AyaError as error:
                problem = error
                self._damaged.add(candidate)
                log.warning("%s; trying the checkpoint before", error)
                continue
            rest = like._replace(params=None)
            params = _restored(place, "params", like.params)
            leaves = _restored(place, "rest", _named(rest))
            whole = jax.tree.unflatten(
                jax.tree.structure(rest), [leaves[name] for name in _named(rest)]
            )
            return candidate, whole._replace(params=params)
        raise problem

    def load_params(self, step: int) -> Any:
        """Return the parameters of a checkpoint alone, on the default device.

        Raises:
          AyaError: it is missing or damaged.
        """
        self.wait()
        return jax.tree.map(jnp.asarray, read_tree(self._place(step), "params"))

    def path(self, step: int) -> Path:
        """Return the folder of a checkpoint; `params` in it is a tree of `store`.

        Raises:
          AyaError: see `wait`.
        """
        self.wait()
        return self._place(step)


def _clear(partial: Path) -> None:
    """Give back the room of a checkpoint that is not to be whole."""
    if is_lead():
        shutil.rmtree(partial, ignore_errors=True)


def _named(rest: Any) -> dict[str, Any]:
    """Return the leaves by names such as `opt_state.0.mu.embedding`, in the order of the tree."""
    return {leaf_name(path, "."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(rest)}


def _restored(place: Path, name: str, like: Any) -> Any:
    """Return a part of the state; raise `AyaError` where its leaves are not those of `like`."""
    stored, wanted = (
        {
            leaf_name(path): f"{leaf.dtype.name} {list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (stored_shapes(place, name), like)
    )
    different = [
        leaf
        for leaf in sorted(stored.keys() | wanted.keys())
        if stored.get(leaf) != wanted.get(leaf)
    ]
    if different:
        leaf = different[0]
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise AyaError(
            f"{place}: is of another model or optimizer: '{leaf}' is {stored.get(leaf, 'not')} there and "
            f"{wanted.get(leaf, 'not')} here{more}; use the settings that it was made with, or remove "
            f"{place.parent} and train anew"
        )
    return restore_tree(place, name, like)
