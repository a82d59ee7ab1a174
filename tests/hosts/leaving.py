"""Run by test_processes, one of several processes: does what its argument says, and leaves."""

import os
import signal
import sys

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
if failing:
    sys.exit(leave(3, f"what went wrong: {how}"))
# Where another has failed nobody comes to do this.
barrier("never")
