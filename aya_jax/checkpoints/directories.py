"""A folder that several processes fill together, whole or not at all."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aya_jax.data.files import atomic_directory
from aya_jax.sharding.processes import by_lead, failing_together


@contextmanager
def shared_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield one folder to all processes; it takes the name `path` when the block has ended in all.

    In one process it is `atomic_directory`. For the main thread.

    Raises:
      AyaError: as `atomic_directory`, or what was raised in another process.
    """
    with ExitStack() as lead:
        made = atomic_directory(path, replace=replace)
        partial = Path(by_lead(lambda: str(lead.enter_context(made))))
        with failing_together("directory"):
            yield partial
        by_lead(lead.close)
