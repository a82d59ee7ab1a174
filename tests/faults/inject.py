"""Faults by the hundred, each one to be gone on from to the very bits, or refused in one clear line.

    python tests/faults/inject.py --count 200 --seed 0

Every fault follows from the seed and its number. A promise that is broken is told, its folder stays,
and the status is 1.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import Bench, Broken, Ended, plain
from subjects import ARBITRATE, DPO, RECIPE, SFT, TOGETHER, Subject

PREEMPTED = 75
# How those end that have lost another process: aborted by jax, which tells of it, or by ourselves.
BEREAVED = (-signal.SIGABRT, PREEMPTED, 76, 77)
# They must have ended after so many seconds.
A_MINUTE = 60.0
WENT_ON = "went on to the same bits"


@dataclass
class Fault:
    """Faults that strike one subject in one folder, by its own draws.

    Attributes:
      bench, subject, folder, draw: see there.
      count: how many faults there were.
      notes: what was done, for whoever looks for a mistake.
    """

    bench: Bench
    subject: Subject
    folder: Path
    draw: random.Random
    count: int = 0
    notes: list[str] = field(default_factory=list)

    # What the kinds of faults are made of.

    def strike(self, how: str, *, share: float = 1.0) -> Ended:
        """Run the subject and strike at any event of the first `share` of an unbroken run."""
        events = self.bench.unbroken(self.subject).events[0]
        at = self.draw.randint(1, max(1, int(share * events)))
        ended = self.bench.wait(*self.bench.start(self.subject, self.folder, how, at))[0]
        self.count += 1
        self.notes.append(f"{how} at event {at}: status {ended.status}")
        return ended

    def signal_later(self, number: int) -> Ended:
        """Run the subject and send it a signal after a while, shorter than a whole run."""
        after = self.draw.uniform(0, self.bench.unbroken(self.subject).seconds)
        (pid,) = self.bench.start(self.subject, self.folder)
        time.sleep(after)
        os.kill(pid, number)
        (ended,) = self.bench.wait(pid)
        self.count += 1
        self.notes.append(f"signal {number} after {after:.3f} s: status {ended.status}")
        return ended

    def again(self) -> list[Ended]:
        """Run the same command again: it is refused in one line, or makes what the unbroken run made."""
        ended = []
        # A verb that was struck when all was whole has nothing to go on with.
        if self.subject is RECIPE or not (self.folder / self.subject.result).exists():
            ended = self.bench.wait(*self.bench.start(self.subject, self.folder))
        for process in ended:
            if process.status and not plain(process):
                raise Broken(f"status {process.status}, not in one line: {process.told[-3000:]}")
        if not any(process.status for process in ended):
            made = self.bench.content(self.subject, self.folder)
            expected = self.bench.unbroken(self.subject).content
            different = [n for n in made.keys() | expected.keys() if made.get(n) != expected.get(n)]
            if different:
                raise Broken(f"a wrong result: {sorted(different)}; it said {ended}")
            left = [path.name for path in self.folder.rglob(".*.tmp")] if ended else []
            if left:
                raise Broken(f"what the killed left is still there: {left}")
        return ended

    def go_on(self) -> str:
        """Run the same command again, which has no reason to be refused."""
        for ended in self.again():
            if ended.status:
                raise Broken(f"refused: {ended.told}")
        return WENT_ON

    def heard(self, ended: Ended) -> None:
        """Check how a SIGTERM ended the subject."""
        last = (ended.told.splitlines() or [""])[-1]
        told = "SIGTERM" in last and "Traceback" not in ended.told
        # Before the command has begun a signal does what it does to every program.
        if ended.status not in (0, -signal.SIGTERM) and not (ended.status == PREEMPTED and told):
            raise Broken(f"SIGTERM: status {ended.status}: {ended.told[-2000:]}")

    def was_full(self, ended: Ended) -> bool:
        """Check how a full disk ended the subject, if it did."""
        if ended.status and not (plain(ended) and "the disk is full" in ended.told):
            raise Broken(f"status {ended.status}, no full disk is told: {ended.told[-3000:]}")
        return ended.status != 0

    # The kinds of faults; each returns its outcome.

    def killed_at_a_write(self) -> str:
        """`kill -9` before something is written, renamed or removed"""
        self.strike("kill")
        return self.go_on()

    def killed_at_any_time(self) -> str:
        """`kill -9` at any time"""
        self.signal_later(signal.SIGKILL)
        return self.go_on()

    def killed_again_and_again(self) -> str:
        """`kill -9` before a write, three times in a row"""
        for _ in range(3):
            self.strike("kill")
        return self.go_on()

    def terminated(self) -> str:
        """SIGTERM, before a write or at any time"""
        at_write = self.draw.random() < 0.5
        self.heard(self.strike("term") if at_write else self.signal_later(signal.SIGTERM))
        return self.go_on()

    def disk_full(self) -> str:
        """a disk that is full from some write on, until the next attempt"""
        refused = self.was_full(self.strike("full"))
        return f"refused in one line, then {self.go_on()}" if refused else self.go_on()

    def small_disk(self) -> str:
        """a disk (tmpfs) smaller than what is written, which then grows"""
        size = self.draw.randint(4 << 10, self.bench.unbroken(self.subject).size)
        self.folder.mkdir()
        disk = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.folder)]
        subprocess.run(disk, check=True)
        try:
            (ended,) = self.bench.wait(*self.bench.start(self.subject, self.folder))
            self.count += 1
            self.notes.append(f"a disk of {size} bytes: status {ended.status}")
            refused = self.was_full(ended)
            subprocess.run(["mount", "-o", "remount,size=256m", str(self.folder)], check=True)
            return f"refused in one line, then {self.go_on()}" if refused else self.go_on()
        finally:
            subprocess.run(["umount", str(self.folder)], check=True)

    def damaged_checkpoint(self) -> str:
        """a file of a checkpoint, left by `kill -9`, cut short or with a bit flipped"""
        while not (files := self._checkpoint_files()):
            shutil.rmtree(self.folder, ignore_errors=True)
            ended = self.strike("kill")
            if ended.status not in (0, -signal.SIGKILL):
                raise Broken(f"status {ended.status}: {ended.told[-3000:]}")
        file, self.count = self.draw.choice(files), 1
        self.notes.append(f"{file.relative_to(self.folder)}: {damage(file, self.draw)}")
        (ended,) = self.again()
        self.notes.append(ended.told)
        if ended.status == 0:
            return WENT_ON
        # What the line tells to do.
        damaged = re.search(r"remove (\S+) and make it again", ended.told)
        if damaged is None or not Path(damaged[1]).is_dir():
            raise Broken(f"it does not tell what to do: {ended.told}")
        shutil.rmtree(damaged[1])
        return f"refused in one line, then {self.go_on()}"

    def _checkpoint_files(self) -> list[Path]:
        steps = self.folder.glob("out.partial/checkpoints/step_*")
        return sorted(file for step in steps for file in step.rglob("*") if file.is_file())

    def lost_process(self) -> str:
        """`kill -9` of one process of two"""
        struck = self.draw.randrange(2)
        at = self.draw.randint(1, self.bench.unbroken(self.subject).events[struck])
        started = self.bench.start(self.subject, self.folder, "kill", at, struck)
        ended = self.bench.wait(*started)
        self.count += 1
        statuses = [process.status for process in ended]
        self.notes.append(f"kill of process {struck} at event {at}: statuses {statuses}")
        lost, left = ended[struck], ended[1 - struck]
        if lost.status == -signal.SIGKILL:
            if left.status not in BEREAVED or left.at - lost.at > A_MINUTE:
                took = left.at - lost.at
                raise Broken(f"status {left.status} after {took:.0f} s: {left.told[-3000:]}")
            named = "leader task" if struck == 0 else r"process 1|task 1|heartbeats\):\n1"
            if not re.search(named, left.told):
                raise Broken(f"it does not tell who was lost: {left.told[-3000:]}")
        return self.go_on()

    def one_terminated(self) -> str:
        """SIGTERM to one process of two"""
        struck = self.draw.randrange(2)
        at = self.draw.randint(1, self.bench.unbroken(self.subject).events[struck])
        ended = self.bench.wait(*self.bench.start(self.subject, self.folder, "term", at, struck))
        self.count += 1
        statuses = [process.status for process in ended]
        self.notes.append(f"SIGTERM to process {struck} at event {at}: statuses {statuses}")
        if statuses not in ([PREEMPTED, PREEMPTED], [0, 0]):
            told = "; ".join(process.told[-2000:] for process in ended)
            raise Broken(f"they do not end together: {told}")
        told = [line for process in ended for line in process.told.splitlines()]
        self.notes += told
        if statuses[0] and sum("SIGTERM" in line for line in told) != 1:
            raise Broken(f"it is not told once: {told}")
        return self.go_on()

    def recipe_struck(self) -> str:
        """a whole recipe, struck ten times by `kill -9`, SIGTERM or a full disk"""
        while self.count < 10:
            how = self.draw.choice(("kill", "kill", "term", "full"))
            ended = self.strike(how, share=0.2)
            if how == "term":
                self.heard(ended)
            elif how == "full":
                self.was_full(ended)
        return self.go_on()


def damage(file: Path, draw: random.Random) -> str:
    """Cut a file short, or flip one of its bits; return what was done."""
    data = bytearray(file.read_bytes())
    if data and draw.random() < 0.5:
        place = draw.randrange(8 * len(data))
        data[place // 8] ^= 1 << (place % 8)
        file.write_bytes(data)
        return f"bit {place} flipped"
    size = draw.randrange(len(data)) if data else 0
    file.write_bytes(data[:size])
    return f"cut from {len(data)} to {size} bytes"


# Each kind with the subjects that it strikes, and how often it is drawn.
KINDS: dict[Callable[[Fault], str], tuple[tuple[Subject, ...], float]] = {
    Fault.killed_at_a_write: ((SFT, DPO, ARBITRATE), 0.25),
    Fault.killed_at_any_time: ((SFT, DPO, ARBITRATE), 0.15),
    Fault.killed_again_and_again: ((SFT, DPO), 0.05),
    Fault.terminated: ((SFT, DPO, ARBITRATE), 0.13),
    Fault.damaged_checkpoint: ((SFT, DPO), 0.2),
    Fault.disk_full: ((SFT, DPO, ARBITRATE), 0.1),
    Fault.small_disk: ((SFT, DPO, ARBITRATE), 0.05),
    Fault.lost_process: ((TOGETHER,), 0.05),
    Fault.one_terminated: ((TOGETHER,), 0.03),
    Fault.recipe_struck: ((RECIPE,), 0.02),
}


def can_mount() -> bool:
    """Whether this user may mount a small disk."""
    with tempfile.TemporaryDirectory() as place:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]
        if subprocess.run(mount, capture_output=True).returncode:
            return False
        return subprocess.run(["umount", place]).returncode == 0


def main() -> int:
    """Inject the faults; print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="at least so many faults")
    parser.add_argument("--seed", type=int, default=0, help="what they follow from")
    parser.add_argument(
        "--place", type=Path, help="folder to work in; one that is removed if absent"
    )
    parser.add_argument(
        "--without", nargs="*", default=[], help="kinds to leave out, by their names"
    )
    arguments = parser.parse_args()
    place = arguments.place or Path(tempfile.mkdtemp(prefix="faults."))
    place.mkdir(parents=True, exist_ok=True)
    bench = Bench(place.absolute())
    without = {*arguments.without, *(() if can_mount() else ("small_disk",))}
    kinds = [kind for kind in KINDS if kind.__name__ not in without]
    outcomes: dict[str, Counter[str]] = {}
    done = number = broken = 0
    while done < arguments.count:
        draw = random.Random(f"{arguments.seed}/{number}")
        kind = draw.choices(kinds, [KINDS[kind][1] for kind in kinds])[0]
        subject = draw.choice(KINDS[kind][0])
        fault = Fault(bench, subject, bench.place / f"fault_{number:04d}", draw)
        shutil.rmtree(fault.folder, ignore_errors=True)
        try:
            outcome = kind(fault)
            shutil.rmtree(fault.folder)
        except Broken as error:
            broken += 1
            outcome = "BROKEN"
            fault.notes.append(str(error))
        done += fault.count
        number += 1
        notes = "; ".join(fault.notes)
        print(f"{done:4d} {subject.name}: {kind.__name__}: {outcome} ({notes})", flush=True)
        outcomes.setdefault(str(kind.__doc__), Counter())[outcome] += fault.count
    print(f"\nseed {arguments.seed}: {done} faults, {broken} promises broken\n")
    print("| fault | count | outcome |\n|---|---:|---|")
    for what, counts in outcomes.items():
        told = "; ".join(f"{count} {outcome}" for outcome, count in counts.items())
        print(f"| {what} | {sum(counts.values())} | {told} |")
    if not arguments.place and not broken:
        shutil.rmtree(place)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
