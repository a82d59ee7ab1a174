"""A real run, killed at a random point in each of its stages, ends in the bits of an unbroken one."""

import random
import re
import shutil
import signal
import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event

pytestmark = pytest.mark.slow

SEED = 20241205
PATIENCE = 900.0


class Killer:
    """Starts the run, kills it inside a stage, and notes what it did."""

    def __init__(self, aya, path, unbroken):
        self.aya, self.path = aya, path
        self.stages, self.seconds = unbroken.stages, unbroken.seconds
        self.trained = {folder.name for folder in (unbroken.path / "metrics").iterdir()}
        self.draw = random.Random(SEED)
        self.notes, self.missed = [], set()
        self.log = path.with_name("told.txt")

    def partial(self, stage):
        return self.path / "stages" / f"{stage}.partial"

    def checkpoints(self, stage):
        """Return how many whole checkpoints a killed training left."""
        return len(list(self.partial(stage).glob("checkpoints/step_*")))

    def kill_in(self, stage):
        """Kill the run inside `stage`; one that was quicker than the kill is killed again."""
        delay = self.draw.uniform(0, min(self.seconds[stage], 0.6))
        after = self.draw.randrange(3) if stage in self.trained else 0
        for _ in range(12):
            with self.log.open("a") as told:
                process = self.aya.start(self.path, stdout=told)
            try:
                self.wait(process, stage, after)
                time.sleep(delay)
            finally:
                process.kill()
            assert process.wait() == -signal.SIGKILL, self.told()
            whole = (self.path / "stages" / stage).exists()
            note = f"{stage}: {after} checkpoints and {delay:.4f} s: "
            if self.partial(stage).is_dir() and not whole:
                self.notes.append(f"{note}killed with {self.checkpoints(stage)} checkpoints")
                return
            self.notes.append(f"{note}too late")
            # Once more, and as if the run had not got beyond this stage.
            done = self.stages[: self.stages.index(stage)]
            for place in (self.path / "stages").iterdir():
                if place.name not in done:
                    self.missed.add(place.name)
                    shutil.rmtree(place)
            delay, after = delay / 4, max(0, after - 1)
        pytest.fail(f"{stage} was never killed in time\n{self.told()}")

    def wait(self, process, stage, checkpoints):
        """Return when the stage is at work and has so many checkpoints, or is whole already."""
        deadline = time.monotonic() + PATIENCE
        place = self.path / "stages" / stage
        while time.monotonic() < deadline:
            at_work = self.partial(stage).exists() and self.checkpoints(stage) >= checkpoints
            if at_work or place.exists():
                return
            assert process.poll() is None, self.told()
            time.sleep(0.0005)
        pytest.fail(f"{stage} did not begin\n{self.told()}")

    def told(self):
        return f"seed {SEED}\n" + "\n".join(self.notes) + "\n" + self.log.read_text()[-3000:]


def steps_told(files):
    """Return the steps that TensorBoard events in some files tell of."""
    steps = set()
    for file in files:
        data, place = file.read_bytes(), 0
        while place < len(data):
            (size,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + size])
            if event.summary.value:
                steps.add(event.step)
            place += size + 16
    return steps


def test_a_run_killed_in_each_stage(unbroken, aya, run_of, tmp_path):
    broken = run_of(tmp_path / "run")
    killer = Killer(aya, broken.path, unbroken)
    left, events = {}, {}
    for stage in unbroken.stages:
        killer.kill_in(stage)
        left[stage] = killer.checkpoints(stage)
        events[stage] = set((broken.path / "metrics" / stage).glob("*"))
    told = aya.succeed(broken.path)
    assert f"{len(unbroken.stages) - 1} of {len(unbroken.stages)} stages were whole" in told
    notes = killer.told()

    # Nothing was done twice, and nothing that was begun was thrown away.
    lines = killer.log.read_text() + told
    for stage in set(unbroken.stages) - killer.missed:
        assert len(re.findall(rf"^\[ ?\d+/\d+\] {re.escape(stage)}  ", lines, re.M)) == 1, notes
    assert "runs again" not in lines, notes
    # Trainings went on from their checkpoints, which are two steps apart, the last at step 6.
    went_on = [name for name in left if left[name]]
    assert len(went_on) >= 3, notes
    for name in went_on:
        steps = steps_told(set((broken.path / "metrics" / name).glob("*")) - events[name])
        assert steps in ({3, 4, 5, 6}, {5, 6}, set()), (name, steps, notes)

    assert broken.parameters() == unbroken.parameters(), notes
    made, expected = broken.files(), unbroken.files()
    assert made.keys() == expected.keys(), notes
    assert {name for name in made if made[name] != expected[name]} == set(), notes
    assert broken.report() == unbroken.report(), notes
