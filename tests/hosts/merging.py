"""Run by test_merging, one of several processes: merges models in both forms, killed or not.

Arguments: FOLDER DIES BASE MODELS...; process DIES, if it is one, kills itself on the way.
"""

import os
import signal
import sys
from pathlib import Path

import jax

from aya_jax.checkpoints import slices
from aya_jax.merging import outputs, stored, writer
from aya_jax.merging.journal import Journal
from aya_jax.merging.merge import merge
from aya_jax.sharding.processes import leave, start_processes


def die_at(count: int) -> None:
    """Let this process end when it has noted so many tensors."""
    add, noted = Journal.add, 0

    def watched(self: Journal, sums: object) -> None:
        nonlocal noted
        noted += 1
        if noted > count:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, sums)  # type: ignore[arg-type]

    Journal.add = watched  # type: ignore[method-assign]


if __name__ == "__main__":
    start_processes()
    folder, dies, base, *models = sys.argv[1:]
    slices.CHUNK = outputs.CHUNK = 3000
    stored.PART, stored.AT_ONCE, writer.SEALED = 3000, 64, 1
    if dies == str(jax.process_index()):
        die_at(3)
    for form in ("aya", "hugging_face"):
        merge(models, base=base, out=Path(folder, form), method="ties", form=form)
    sys.exit(leave(0))
