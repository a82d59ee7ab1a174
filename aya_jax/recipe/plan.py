"""`aya plan`: what a recipe needs of chips that are not here, stage by stage, before they are rented."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import gin

from aya_jax.compat import versions
from aya_jax.data.files import atomic_write
from aya_jax.errors import AyaError
from aya_jax.planning.figures import FILL, Figures, examine
from aya_jax.planning.programs import Sampling, Training, Work
from aya_jax.planning.search import Candidate, best, candidates
from aya_jax.planning.topology import (
    Topology,
    describe_devices,
    only_compile,
    parse_topology,
)
from aya_jax.progress import Terminal
from aya_jax.recipe.expanse import expanse
from aya_jax.recipe.run import OPTIONAL_SCOPES
from aya_jax.recipe.settings import check_scopes, parse_gin
from aya_jax.recipe.stages import Stage
from aya_jax.recipe.works import Part, Works, in_scope
from aya_jax.report import plan_rows
from aya_jax.report.plan_page import render_plan
from aya_jax.sharding.chips import PRICES_READ
from aya_jax.sharding.mesh import device_mesh, logical_rules
from aya_jax.sharding.place import Place, inference_mesh

HOUR = 3600.0


def plan_recipe(
    files: Sequence[str],
    bindings: Sequence[str],
    *,
    topology: str,
    terminal: Terminal,
    json_file: str | None = None,
    html_file: str | None = None,
    search: bool = False,
    exact: bool = False,
    price: float | None = None,
) -> dict[str, Any]:
    """Compile the programs of a recipe's stages for chips that are not here; show and return the plan.

    Args:
      files, bindings: as of `aya run`; the models and records that they name need not be here.
      topology: such as `v5e:8x8`.
      terminal: where the plan is shown.
      json_file, html_file: where it is written too.
      search: whether to look for the best mesh even where all stages fit as they are.
      exact: whether the compiler spends the time on programs that it would for a run.
      price: US dollars an hour for one chip, in place of the one in `sharding.chips`.

    Raises:
      AyaError: the configuration is wrong, the topology unknown, or its compiler not installed.
    """
    only_compile()
    chips = parse_topology(topology)
    devices = describe_devices(chips)
    gin.clear_config()
    parse_gin(files, bindings)
    recipe = expanse(present=False)
    check_scopes([*OPTIONAL_SCOPES, *(stage.scope for stage in recipe.stages)])
    plan = _Plan(chips, devices, recipe.stages, terminal, quick=not exact)
    told = plan.to_json(Path(files[0]).stem, search=search, price=price)
    show(told, terminal)
    if json_file:
        atomic_write(Path(json_file), json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    if html_file:
        atomic_write(Path(html_file), render_plan(told))
    return told


def show(plan: Mapping[str, Any], terminal: Terminal) -> None:
    """Print a plan: memory and bounds of each program, what is exchanged, totals, advice."""
    programs = plan_rows.grouped(plan["stages"])
    title = f"{plan['recipe']} on {plan['topology']}, {plan['chips']} chips: memory a device, GiB"
    terminal.table(title, plan_rows.MEMORY, [plan_rows.memory_row(p, s) for p, s in programs])
    bounded = [(p, s) for p, s in programs if p.get("step_seconds_bound") is not None]
    terminal.table(
        "Bounds by arithmetic; nothing was run or measured",
        plan_rows.BOUNDS,
        [plan_rows.bounds_row(p, s) for p, s in bounded],
    )
    terminal.table(
        "What a device sends in one run of a program",
        plan_rows.EXCHANGES,
        [row for p, s in bounded for row in plan_rows.exchange_rows(p, s)],
    )
    for program, stages in programs:
        for line in plan_rows.faults(program, stages):
            terminal.say(line)
    for line in plan_rows.summary(plan):
        terminal.say(line)


class _Plan:
    """The figures of all stages; equal programs are compiled once."""

    def __init__(
        self,
        topology: Topology,
        devices: Any,
        stages: Sequence[Stage],
        terminal: Terminal,
        *,
        quick: bool,
    ) -> None:
        self.topology, self.devices, self.quick = topology, devices, quick
        self.stages, self.terminal = stages, terminal
        self.works = Works(stages)
        self.found: dict[tuple[Work, Place], Figures | str] = {}

    @cached_property
    def parts(self) -> dict[str, list[tuple[Part, Place]]]:
        """The programs of each stage that has any, and where they run."""
        parts = {}
        for stage in self.stages:
            found = self.works.of(stage)
            if found:
                devices = list(self.devices)
                with in_scope(stage.scope):
                    rules = logical_rules()
                    meshes = {
                        infers: (inference_mesh if infers else device_mesh)(devices=devices)
                        for infers in {part.infers for part in found}
                    }
                parts[stage.name] = [(part, Place(meshes[part.infers], rules)) for part in found]
        return parts

    def examine_all(self) -> None:
        """Compile every program that is not compiled yet."""
        wanted = dict.fromkeys(
            (part.work, place) for parts in self.parts.values() for part, place in parts
        )
        for number, key in enumerate(wanted, start=1):
            first = next(
                f"{stage} ({part.name})"
                for stage, parts in self.parts.items()
                for part, place in parts
                if (part.work, place) == key
            )
            line = self.terminal.stage(first, number, len(wanted))
            outcome = "stopped"
            try:
                figures = self._examine(*key)
                outcome = _outcome(figures)
            finally:
                line.close(outcome)

    def _examine(self, work: Work, place: Place) -> Figures | str:
        """Return the figures of a program, or why it cannot be compiled on that mesh."""
        if (work, place) not in self.found:
            try:
                reason = _undivided(work, place)
                self.found[work, place] = reason or examine(
                    self.topology, place, work, quick=self.quick
                )
            except AyaError as error:
                self.found[work, place] = str(error).splitlines()[0]
        return self.found[work, place]

    def to_json(self, recipe: str, *, search: bool, price: float | None) -> dict[str, Any]:
        """Return the whole plan, see docs/planning.md."""
        self.examine_all()
        chip = self.topology.chip
        stages = {name: self._stage(name) for name in self.parts}
        own = price if price is not None else chip.price
        fits = all(stage["fits"] for stage in stages.values())
        seconds = [stage["seconds_bound"] for stage in stages.values()]
        known = [value for value in seconds if value is not None]
        hours = sum(known) / HOUR * self.topology.chips
        return {
            "recipe": recipe,
            "topology": self.topology.name,
            "chips": self.topology.chips,
            "chip": {
                "name": chip.name,
                "flops": chip.flops,
                "hbm_bytes": chip.hbm_bytes,
                "hbm_bandwidth": chip.hbm_bandwidth,
                "price": own,
                "price_source": chip.price_source if price is None else "given",
                "price_read": PRICES_READ if price is None else None,
            },
            "fill": FILL,
            "fits": fits,
            "stages": stages,
            "without_accelerator": [s.name for s in self.stages if s.name not in self.parts],
            "assumed_models": sorted(self.works.assumed),
            "total": {
                "seconds_bound": sum(known),
                "chip_hours_bound": hours,
                "cost_bound": None if own is None else hours * own,
                "unknown_stages": [
                    name for name, stage in stages.items() if stage["seconds_bound"] is None
                ],
                "at_most_stages": [
                    name
                    for name, stage in stages.items()
                    if any(program["runs_basis"] == "at most" for program in stage["programs"])
                ],
            },
            "recommendation": self._recommend(search),
            "versions": versions() | {"compiler": "quick" if self.quick else "exact"},
        }

    def _stage(self, name: str) -> dict[str, Any]:
        programs = []
        for part, place in self.parts[name]:
            figures = self._examine(part.work, place)
            told: dict[str, Any] = {"name": part.name}
            if isinstance(figures, str):
                told |= {"fits": False, "reason": figures, "mesh": dict(place.mesh.shape)}
                told |= {"peak_bytes": None, "step_seconds_bound": None}
            else:
                told |= figures.to_json()
            runs, step = part.runs(place), told["step_seconds_bound"]
            told |= {"runs": runs.number, "runs_basis": runs.basis}
            told["seconds_bound"] = (
                None if step is None or runs.number is None else step * runs.number
            )
            programs.append(told)
        # A stage's own figures are those of its training; else those of what takes most memory.
        trained = [p for p in programs if p["name"] == "training"]
        main = (trained or sorted(programs, key=lambda p: -(p["peak_bytes"] or 0)))[0]
        seconds = [program["seconds_bound"] for program in programs]
        return {
            **{k: v for k, v in main.items() if k not in ("name", "seconds_bound")},
            "fits": all(program["fits"] for program in programs),
            "seconds_bound": None if None in seconds else sum(seconds),
            "programs": programs,
        }

    def _largest(self, kind: type[Any]) -> tuple[Any, Place, list[str]] | None:
        """Return the program of a kind that computes most, where it runs, and the stages that run it."""
        stages: dict[tuple[Any, Place], list[str]] = {}
        for stage, parts in self.parts.items():
            for part, place in parts:
                if isinstance(part.work, kind):
                    stages.setdefault((part.work, place), []).append(stage)
        if not stages:
            return None
        key = max(stages, key=lambda each: each[0].model_flops(each[1]))
        return *key, stages[key]

    def _recommend(self, search: bool) -> dict[str, Any]:
        """Return what to take for training and for sampling: compiled where it is asked for or needed."""
        told: dict[str, Any] = {}
        for name, kind in (("training", Training), ("sampling", Sampling)):
            largest = self._largest(kind)
            if largest is None:
                continue
            work, place, _ = largest
            as_it_is = self.found[work, place]
            needed = isinstance(as_it_is, str) or not as_it_is.fits
            told[name] = self._search(work, place, search or needed)
        return told

    def _search(self, work: Training | Sampling, place: Place, compiled: bool) -> dict[str, Any]:
        found = candidates(self.topology, self.devices, work, place.rules)
        if not found:
            return {"found": False, "reason": "no mesh of these chips holds it, by arithmetic"}
        if not compiled:
            return {"found": True, "compiled": False, **_guess(found[0])}
        name = "training" if isinstance(work, Training) else "sampling"
        line = self.terminal.stage(f"search for {name}", 1, 1)
        chosen = best(self.topology, found, quick=self.quick)
        line.close("none fits" if chosen is None else _outcome(chosen[1]))
        if chosen is None:
            return {"found": False, "reason": "none of the best that were compiled fits"}
        candidate, figures = chosen
        self.found[candidate.work, candidate.place] = figures
        return {
            "found": True,
            "compiled": True,
            **_guess(candidate),
            "peak_bytes": figures.compiled.memory.peak,
            "step_seconds_bound": figures.bound.seconds if figures.bound else None,
        }


def _guess(candidate: Candidate) -> dict[str, Any]:
    return {
        "settings": candidate.settings,
        "guessed_bytes": candidate.bytes,
        "guessed_seconds": candidate.seconds,
    }


def _undivided(work: Work, place: Place) -> str | None:
    """Say what of a batch does not divide over the mesh, or return None."""
    if not isinstance(work, Training):
        return None
    parts = 1
    shape: Mapping[str, int] = place.mesh.shape
    for axis in place.axes("batch"):
        parts *= shape[axis]
    if work.rows % (work.accumulate * parts):
        return (
            f"train.batch_size {work.rows} does not divide into {work.accumulate} micro-batches over {parts} "
            "parts of the mesh; give another size, train.accumulate or device_mesh.*"
        )
    return None


def _outcome(figures: Figures | str) -> str:
    if isinstance(figures, str):
        return figures
    peak, held = figures.compiled.memory.peak, figures.hbm_bytes
    return f"{peak / 2**30:.1f} of {held / 2**30:.0f} GiB{'' if figures.fits else ', does not fit'}"
