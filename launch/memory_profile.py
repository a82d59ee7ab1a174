"""Runs `aya` and keeps a profile of the device's memory from when it held the most.

usage: python launch/memory_profile.py PROFILE VERB [ARGUMENT...]

PROFILE is read with pprof (https://github.com/google/pprof). It is written anew whenever the device
holds a twentieth more than at the last writing.
"""

import os
import sys
import threading

import jax

from aya_jax.cli import main

PERIOD = 1.0


def held() -> int:
    """Return the bytes in use on the first device; where it keeps no count, those of arrays alone."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["bytes_in_use"] if stats else sum(array.nbytes for array in jax.live_arrays())


def watch(profile: str, ended: threading.Event) -> None:
    """Write the profile until `ended`."""
    most = 0
    while not ended.wait(PERIOD):
        now = held()
        if now > most * 1.05:
            jax.profiler.save_device_memory_profile(f"{profile}.new")
            os.replace(f"{profile}.new", profile)
            most = now


if __name__ == "__main__":
    over = threading.Event()
    threading.Thread(target=watch, args=(sys.argv[1], over), daemon=True).start()
    status = main(sys.argv[2:])
    over.set()
    sys.exit(status)
