"""What the faults strike: small trainings, a sampling, and a whole recipe of moments."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MICRO = ROOT / "tests" / "recipe" / "micro.gin"
# In place of what the tests of the command line give.
LONGER = ("train.steps = 8", "train.checkpoint_every = 2", "train.log_every = 1")
# Files whose bytes are not the same in every run: those that Orbax writes, whose content is compared as
# arrays, what is kept of incidents, and the mark of what made a folder, which a verb's last act removes.
NOT_COMPARED = {"params", "params.checksums.json", "incidents", "fingerprint"}


@dataclass(frozen=True)
class Subject:
    """A command that works in a folder of its own.

    Attributes:
      name: of the subject.
      words: the command after `aya`; `SHELF` and `FOLDER` stand for the two folders.
      result: what it makes, in the folder.
      processes: how many work at it together.
    """

    name: str
    words: tuple[str, ...]
    result: str = "out"
    processes: int = 1

    def command(self, shelf: Path, folder: Path) -> list[str]:
        """Return the command after `aya`."""
        words = [w.replace("SHELF", str(shelf)).replace("FOLDER", str(folder)) for w in self.words]
        # What imports jax is imported when the environment is set.
        from shelf import SMALL

        settings = () if self.name == "recipe" else (*SMALL, *LONGER)
        return [*words, *(word for binding in settings for word in ("--gin_bindings", binding))]

    def content(self, folder: Path) -> dict[str, str]:
        """Return what the command made, by file; two runs are equal if and only if this is."""
        from aya_jax.checkpoints.model_directory import load_params
        from aya_jax.checkpoints.store import leaf_checksums

        made, content = folder / self.result, {}
        for file in sorted(path for path in made.rglob("*") if path.is_file()):
            name = file.relative_to(made)
            if name.parts[0] in ("metrics", "lock", "report.html", "run.json"):
                continue
            if set(name.parts) & NOT_COMPARED:
                continue
            data = file.read_bytes()
            if name.name == "report.json":
                report = json.loads(data)
                for stage in report["stages"]:
                    stage.pop("seconds")
                data = json.dumps(report, sort_keys=True).encode()
            content[name.as_posix()] = hashlib.sha256(data).hexdigest()
        for params in sorted(made.rglob("params")):
            sums = leaf_checksums(load_params(params.parent, on_host=True))
            content[params.relative_to(made).as_posix()] = json.dumps(sums)
        return content


def _training(verb: str, data: str) -> Subject:
    return Subject(
        verb,
        (verb, "--model", "SHELF/model", "--data", f"SHELF/{data}.jsonl", "--out", "FOLDER/out"),
    )


SFT, DPO = _training("sft", "sft"), _training("dpo", "pairs")
ARBITRATE = Subject(
    "arbitrate",
    (
        *("arbitrate", "--data", "SHELF/prompts.jsonl", "--teachers", "SHELF/model", "SHELF/other"),
        *("--reward", "SHELF/reward", "--out", "FOLDER/out"),
    ),
)
RECIPE = Subject("recipe", ("run", str(MICRO), "--run_dir", "FOLDER/run"), result="run")
TOGETHER = replace(SFT, name="sft of two processes", processes=2)
