"""Run by test_processes, one of several processes: does what its argument says, and leaves.

Arguments: what to do, and a folder to make.
"""

import os
import signal
import sys

from aya_jax.checkpoints.directories import shared_directory
from aya_jax.errors import AyaError
from aya_jax.sharding.processes import (
    barrier,
    by_lead,
    from_all,
    is_lead,
    leave,
    start_processes,
)

start_processes()
how, lead = sys.argv[1], is_lead()
barrier("all are there")
if how == "well":
    value = by_lead(lambda: ["made", os.getpid()])
    print(from_all("told", value))
    sys.exit(leave(0))
if how.startswith("lost") and lead == (how == "lost lead"):
    os.kill(os.getpid(), signal.SIGKILL)
failing = {"lead fails": lead, "other fails": not lead, "all fail": True}.get(how, False)
if how.endswith("inside"):
    try:
        with shared_directory(sys.argv[2]) as partial:
            (partial / str(lead)).touch()
            if lead == (how == "lead fails inside"):
                raise AyaError(f"what went wrong: {how}")
            # Where another works for hours, or waits for this one.
            barrier("never")
    except AyaError as error:
        sys.exit(leave(3, str(error)))
if failing:
    sys.exit(leave(3, f"what went wrong: {how}"))
# Where another has failed nobody comes to do this.
barrier("never")
