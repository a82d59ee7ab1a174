"""Train steps of ours and of TRL, side by side on this machine's processors: `make bench`.

Both sides train the same small model (one Hugging Face directory) on the same tokens in the same batches, in
float32, by AdamW with the same settings, without rematerialisation. First it is shown that they do the same:
equal batches, equal log-probabilities of the reference, and losses that agree from the first step on. Then they
are timed, each in a process of its own, in turns. The table goes into docs/benchmarks.md.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import case
from page import put

HERE = Path(__file__).resolve().parent
STEPS = 2  # of a sample
COMPARED = 6  # first steps, whose losses are compared; they warm up too
TOLERANCE = 1e-4  # relative, of losses and log-probabilities
MIB = 1 << 20


class Side:
    """A process that trains when it is told to."""

    def __init__(self, python, script, task, folder):
        # Both on the processors, whatever else there is.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HOME": str(folder / "hf")}
        self.name = f"{script} {task}"
        self.log = folder / f"{self.name}.log"
        self.process = subprocess.Popen(
            [python, HERE / script, task, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            env=environment,
            text=True,
        )
        self.start = self.answer()

    def answer(self):
        """Return what the process says next."""
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text().splitlines()[-20:])
            sys.exit(f"{self.name} ended with status {self.process.wait()}:\n{tail}")
        return json.loads(line)

    def steps(self, count):
        """Let it do so many steps; return what it says of them."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        """End it."""
        self.process.stdin.close()
        self.process.wait()


class Sample(NamedTuple):
    """Of one side, each a step: seconds, seconds of processors, and in all the most memory in bytes."""

    seconds: list[float]
    cpu_seconds: list[float]
    peak_bytes: int


def require_equal(task, ours, theirs):
    """End with a message unless both sides were given the same, and lose the same in their first steps."""
    if ours.start["batches"] != theirs.start["batches"]:
        sys.exit(f"{task}: the batches differ")
    require_close(
        f"{task}: log-probabilities of the reference",
        ours.start["reference"],
        theirs.start["reference"],
    )
    losses = [side.steps(COMPARED)["losses"] for side in (ours, theirs)]
    return require_close(f"{task}: losses", *losses)


def require_close(what, ours, theirs):
    """Return the largest relative difference, or end with a message where it is too large."""
    gaps = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
    if max(gaps, default=0.0) > TOLERANCE:
        sys.exit(f"{what} differ by {max(gaps):.1e}: {ours}, {theirs}")
    return max(gaps, default=0.0)


def timed(sides, rounds):
    """Return a `Sample` of each side, timed in turns; every other round goes through them backwards."""
    told = [[] for _ in sides]
    for number in range(rounds):
        for place in list(range(len(sides)))[:: -1 if number % 2 else 1]:
            told[place].append(sides[place].steps(STEPS))
    return [
        Sample(
            [answer["seconds"] / STEPS for answer in answers],
            [answer["cpu_seconds"] / STEPS for answer in answers],
            answers[-1]["peak_bytes"],
        )
        for answers in told
    ]


HEAD = """\
| what | ours, s a step | TRL's | times as fast | real tokens a second | TRL's | processor-seconds a step | TRL's | peak memory, MiB | TRL's |
|---|---|---|---|---|---|---|---|---|---|"""


def row(what, tokens, ours, theirs):
    """Return a row of the table; `tokens` are those of a step, ours and theirs."""
    times = [statistics.median(side.seconds) for side in (ours, theirs)]
    speeds = [count / seconds for count, seconds in zip(tokens, times, strict=True)]
    each = [
        t / o * tokens[0] / tokens[1] for o, t in zip(ours.seconds, theirs.seconds, strict=True)
    ]
    ratio = f"{speeds[0] / speeds[1]:.2f} ({min(each):.2f} to {max(each):.2f})"
    cells = [what, *(f"{seconds:.2f}" for seconds in times), ratio]
    cells += [f"{speed:,.0f}" for speed in speeds]
    cells += [f"{statistics.median(side.cpu_seconds):.2f}" for side in (ours, theirs)]
    cells += [f"{side.peak_bytes / MIB:,.0f}" for side in (ours, theirs)]
    return f"| {' | '.join(cells)} |"


def machine():
    """Return what was measured on, and when."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return (
        f"{len(os.sched_getaffinity(0))} cores of {cpu[0].split(': ')[1] if cpu else 'a machine'}, "
        f"{datetime.date.today()}, commit `{commit}`"
    )


def main():
    """Compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl_python", required=True, help="of the environment with TRL")
    parser.add_argument("--page", type=Path, help="where the table goes, printed alone if absent")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    lines = [HEAD]
    with tempfile.TemporaryDirectory() as place:
        folder, loads = Path(place), [os.getloadavg()[0]]
        case.make_documents(folder / "documents.json")
        subprocess.run([args.trl_python, HERE / "their_side.py", "model", folder], check=True)
        gaps = []
        for task in ("sft", "dpo"):
            ours = Side(sys.executable, "our_side.py", task, folder)
            theirs = Side(args.trl_python, "their_side.py", task, folder)
            gaps.append(require_equal(task, ours, theirs))
            sides, tokens = [ours, theirs], [ours.start["tokens"], theirs.start["tokens"]]
            if task == "sft":
                packed = Side(sys.executable, "our_side.py", "packed", folder)
                packed.steps(COMPARED)
                sides.append(packed)
            samples = timed(sides, args.rounds)
            lines.append(row(f"{task.upper()}, the same rows", tokens, *samples[:2]))
            if task == "sft":
                counts = [packed.start["tokens"], tokens[1]]
                lines.append(row("SFT, our rows packed", counts, samples[2], samples[1]))
            releases = {**ours.start["releases"], **theirs.start["releases"]}
            for side in sides:
                side.close()
    known = ", ".join(f"{name} {release}" for name, release in releases.items())
    loads.append(os.getloadavg()[0])
    said = (
        f"{machine()}; {known}. Medians of {args.rounds} turns; load average {loads[0]:.1f} before and "
        f"{loads[1]:.1f} after. Losses of the first {COMPARED} steps differed by at most "
        f"{max(gaps):.0e} of their value."
    )
    text = "\n".join([said, "", *lines])
    print(text)
    if args.page:
        put(args.page, "trl", text)


if __name__ == "__main__":
    main()
