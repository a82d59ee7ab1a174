"""Run by test_interrupted: a merge whose process is killed, by itself, at a moment.

Arguments: MOMENT COUNT OUT FORM METHOD BASE MODELS...: the moment's so-many-th coming is the last.
"""

import os
import signal
import sys

from aya_jax.checkpoints import slices
from aya_jax.merging import outputs, stored, writer
from aya_jax.merging.journal import Journal
from aya_jax.merging.merge import merge


def small() -> None:
    """Make of a small model many pieces, each noted when it is written."""
    slices.CHUNK = outputs.CHUNK = 3000
    stored.PART, stored.AT_ONCE, writer.SEALED = 3000, 64, 1


def die_at(moment: str, count: int) -> None:
    """Let this process end as a machine that loses its power, when a moment has come so often."""
    place, name = {
        "a piece is half written": (outputs, "write_at"),
        "a tensor is written": (Journal, "add"),
        "all is written": (stored, "_all_checksums"),
    }[moment]
    work, come = getattr(place, name), 0

    def watched(*arguments: object) -> object:
        nonlocal come
        come += 1
        if come == count:
            if moment == "a piece is half written":
                file, block, start = arguments
                work(file, block[: len(block) // 2], start)  # type: ignore[index]
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*arguments)

    setattr(place, name, watched)


if __name__ == "__main__":
    moment, count, out, form, method, base, *models = sys.argv[1:]
    small()
    die_at(moment, int(count))
    merge(models, out=out, form=form, method=method, base=base)
