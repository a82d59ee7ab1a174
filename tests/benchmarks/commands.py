"""How a side is driven: it says what it has done in a line of JSON, and does the next steps when told."""

import json
import sys
from typing import Any


def say(**what: Any) -> None:
    """Tell the driver; what libraries print goes elsewhere, see `only_ours`."""
    print(json.dumps(what), file=_OUT, flush=True)


def steps_to_do() -> int:
    """Wait for the driver; return how many steps to do, 0 at the end."""
    return int(sys.stdin.readline() or 0)


def peak_bytes() -> int:
    """Return the most memory that this process ever had (VmHWM, which begins with the process's program)."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


_OUT = sys.stdout
# Libraries greet on the standard output, which is the driver's.
sys.stdout = sys.stderr
