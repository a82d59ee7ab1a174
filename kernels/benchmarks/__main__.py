"""Time the kernels on the first device, against other libraries, and print a Markdown table.

Run from `kernels/` as `python -m benchmarks`. Everything is compiled before it is timed; the programs
of a question are timed together in alternating order; a time is the median of the repeats. What cannot
be had here is listed as missing, with the reason.
"""

import argparse
import platform
from types import ModuleType

import jax

from benchmarks import attention, decode, logprob
from benchmarks.chips import known
from benchmarks.table import HEAD, rows

OPERATIONS: dict[str, ModuleType] = {"attention": attention, "decode": decode, "logprob": logprob}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "operations", nargs="*", default=list(OPERATIONS), help=f"of {', '.join(OPERATIONS)}"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--sizes", choices=["full", "cpu", "tiny"], help="full, or cpu where that is the device"
    )
    args = parser.parse_args()
    unknown = set(args.operations) - set(OPERATIONS)
    if unknown:
        parser.error(f"no operation {sorted(unknown)[0]!r}; there are {', '.join(OPERATIONS)}")
    device = jax.devices()[0]
    sizes = args.sizes or ("cpu" if device.platform == "cpu" else "full")
    chip = known(device.device_kind)
    peak = "unknown" if chip is None else f"{chip.operations:.3g} op/s, {chip.bandwidth:.3g} B/s"
    print(f"Device: {device.device_kind}; its best by its data sheet: {peak}.")
    print(f"jax {jax.__version__}, Python {platform.python_version()}, {args.repeats} repeats.\n")
    print(HEAD, flush=True)
    for name in args.operations:
        module = OPERATIONS[name]
        for question in module.questions(getattr(module, sizes.upper())):
            print("\n".join(rows(question, module.BASELINES, args.repeats)), flush=True)


if __name__ == "__main__":
    main()
