"""A folder that several processes fill together, whole or not at all."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from aya_jax.data.files import atomic_directory, commit_directory, told_plainly
from aya_jax.errors import AyaError
from aya_jax.sharding.processes import barrier, by_lead


@contextmanager
def shared_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield one folder to all processes; it takes the name `path` when the block has ended in all.

    In one process it is `atomic_directory`. What is raised in one of several ends that one, and it the
    others, see `leave`: what is left of the folder is removed then, or by who makes it again. For the
    main thread.

    Raises:
      AyaError: as `atomic_directory`.
    """
    with _filled_together(lambda: atomic_directory(path, replace=replace)) as partial:
        yield partial


@contextmanager
def resumed_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a folder as `shared_directory` does, with what a killed process has left of it.

    Whether that can be gone on from is for the caller to find out. An error removes it.

    Raises:
      AyaError: as `shared_directory`, or another process is filling it.
    """
    with _filled_together(lambda: _resumed(Path(path).absolute(), replace)) as partial:
        yield partial


@contextmanager
def _filled_together(make: Callable[[], AbstractContextManager[Path]]) -> Iterator[Path]:
    with ExitStack() as lead:
        partial = Path(by_lead(lambda: str(lead.enter_context(make()))))
        yield partial
        barrier("directory")
        by_lead(lead.close)


@contextmanager
def _resumed(path: Path, replace: bool) -> Iterator[Path]:
    if path.exists() and not replace:
        raise AyaError(f"{path}: exists already; remove it or give another place")
    partial = path.with_name(f".{path.name}.unfinished")
    with told_plainly(path):
        partial.mkdir(parents=True, exist_ok=True)
        # The system drops the lock when the process is killed.
        with open(partial / "lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AyaError(
                    f"{path}: another process is making it; wait for it to end or give another place"
                ) from None
            try:
                yield partial
                (partial / "lock").unlink()
                commit_directory(partial, path, replace=replace)
            except AyaError:
                # Anything else, another process that is lost for one, says nothing of the work.
                shutil.rmtree(partial, ignore_errors=True)
                raise
