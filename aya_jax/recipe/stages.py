"""Running a list of stages: skip what is whole, say why something runs again, never redo work."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import gin

from aya_jax.data.files import fingerprint, told_plainly
from aya_jax.errors import AyaError
from aya_jax.progress import StageLine, Terminal
from aya_jax.recipe.run_directory import RunDirectory
from aya_jax.recipe.settings import ROOT, effective_settings
from aya_jax.sharding.processes import by_lead, from_all

T = TypeVar("T")

# What only shows results, and so does not change any.
_NOT_PART_OF_RESULTS = (
    "report/",
    "recipe/summary.py",
    "recipe/study.py",
    "cli/",
    "progress.py",
    "metrics.py",
    "__main__.py",
)


@dataclass
class Context:
    """What a stage is given: its name, where to write, its inputs' folders, the line to report on."""

    name: str
    directory: Path
    inputs: dict[str, Path]
    line: StageLine
    events: Path


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      name: unique, also the folder's name.
      run: does the work in `context.directory`; returns a few figures for its line.
      inputs: names of earlier stages.
      outside: what the user brings in a stage's place: the name it is read by, and its path.
      scope: the gin scope it runs under.
      uses: the configurables whose settings under that scope decide the result.
      extra: whatever else decides it: arguments not from gin, fingerprints of the user's files.
    """

    name: str
    run: Callable[[Context], dict[str, Any] | None]
    inputs: tuple[str, ...] = ()
    outside: Mapping[str, Path] = field(default_factory=dict)
    scope: str = ""
    uses: tuple[Callable[..., Any], ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def by_lead_alone(run: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return a stage's work as the lead does it alone; the other processes wait for its figures."""

    @wraps(run)
    def lead(context: Context, **arguments: Any) -> dict[str, Any]:
        return lead_writes(context, lambda: run(context, **arguments))

    return lead


def lead_writes(context: Context, work: Callable[[], T]) -> T:
    """Do what fills a stage's folder in the lead; return what came of it, JSON-able, in all processes."""

    def told() -> T:
        with told_plainly(context.directory):
            return work()

    return by_lead(told)


@cache
def code_version() -> str:
    """Return the sha256 over all source files and templates that results depend on."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    kernels = ROOT / "kernels" / "aya_kernels"
    for base in (package, kernels):
        for path in sorted([*base.rglob("*.py"), *base.rglob("*.json")]):
            name = path.relative_to(base).as_posix()
            if not name.startswith(_NOT_PART_OF_RESULTS):
                digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _plan(stage: Stage, inputs: dict[str, str]) -> dict[str, Any]:
    settings = {**effective_settings(stage.uses, stage.scope), **stage.extra}
    # As run.json will give it back, so that a tuple is not a change of the list it became.
    settings = json.loads(json.dumps(settings))
    made_of = {"settings": settings, "inputs": inputs, "code": code_version()}
    return {**made_of, "fingerprint": fingerprint([stage.name, made_of])}


def _reasons(stage: Stage, old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say in one line why a stage that was whole runs again."""
    reasons = []
    for name in sorted(old["settings"].keys() | new["settings"].keys()):
        before, after = old["settings"].get(name), new["settings"].get(name)
        if before != after:
            scope = f"{stage.scope}/" if stage.scope else ""
            reasons.append(f"{scope}{name} {before!r} -> {after!r}")
    changed = [n for n, value in new["inputs"].items() if old["inputs"].get(n) != value]
    if changed:
        reasons.append(f"its input {', '.join(changed)} changed")
    if old["code"] != new["code"]:
        reasons.append("the code changed")
    return "; ".join(reasons) or "its inputs changed"


def execute(stages: Sequence[Stage], run: RunDirectory, terminal: Terminal) -> None:
    """Run the stages in order, each one only if it is not whole or what makes it has changed.

    An interrupted stage goes on from what it left behind. An error stops the run and leaves all that
    was made. Several processes go through the stages together.
    """
    made: dict[str, str] = {}
    skipped = 0
    for number, stage in enumerate(stages, start=1):
        plan = _plan(stage, {name: made[name] for name in stage.inputs})
        _require_same(stage, plan["fingerprint"])
        made[stage.name] = plan["fingerprint"]
        old = run.entry(stage.name)
        if old.get("fingerprint") == plan["fingerprint"]:
            skipped += 1
            continue
        if old:
            terminal.say(f"{stage.name} runs again: {_reasons(stage, old, plan)}")
        line = terminal.stage(stage.name, number, len(stages))
        started = time.monotonic()
        outcome = "stopped"
        try:
            context = Context(
                name=stage.name,
                directory=run.open_stage(stage.name, plan["fingerprint"]),
                inputs={**{n: run.stage_path(n) for n in stage.inputs}, **stage.outside},
                line=line,
                events=run.path / "metrics" / stage.name,
            )
            with gin.config_scope(stage.scope or None), told_plainly(context.directory):
                figures = stage.run(context) or {}
            # A stage that was killed has worked before; what it did then is not counted.
            entry = {**plan, "seconds": round(time.monotonic() - started, 3), "figures": figures}
            run.close_stage(stage.name, entry)
            outcome = "  ".join(f"{name} {_short(value)}" for name, value in figures.items())
        finally:
            line.close(outcome)
    if skipped:
        terminal.say(f"{skipped} of {len(stages)} stages were whole already and not repeated")


def _require_same(stage: Stage, fingerprint: str) -> None:
    """Raise `AyaError` where the processes of the run are about to do different work."""
    planned = from_all("plan", fingerprint)
    for process, other in enumerate(planned):
        if other != planned[0]:
            raise AyaError(
                f"{stage.name}: process {process} has other code, settings or files than process 0; give "
                "all of them the same"
            )


def _short(value: Any) -> str:
    """Figures by language or teacher are for the report; their line shows the overall value."""
    if isinstance(value, dict):
        value = value.get("overall", {}).get("value", f"{len(value)} languages")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
