"""Curves in Weights & Biases or MLflow too, where they are installed and asked for.

Where they send them, under which project and with which key is what their own environment variables
say (WANDB_PROJECT, WANDB_MODE=offline, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...).
"""

import importlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import gin

from aya_jax.data.files import atomic_write
from aya_jax.errors import AyaError, nearest
from aya_jax.sharding.processes import is_lead

log = logging.getLogger(__name__)

# In the work folder while a training is not whole: the services' numbers of its runs.
RUNS = "sinks.json"


class Service(Protocol):
    """A run at a service."""

    id: str

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep the figures of a step."""

    def close(self, whole: bool) -> None:
        """End the run; `whole` unless the training was broken off."""


class WeightsAndBiases:
    """A run of `wandb`; see https://docs.wandb.ai/ref/python/init."""

    def __init__(self, wandb: Any, name: str, group: str, known: str | None) -> None:
        project = os.environ.get("WANDB_PROJECT", "aya_jax")
        self._run = wandb.init(project=project, group=group, name=name, id=known, resume="allow")
        self.id: str = self._run.id

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, whole: bool) -> None:
        self._run.finish(exit_code=0 if whole else 1)


class MLflow:
    """A run of `mlflow`; see https://mlflow.org/docs/latest/python_api/mlflow.html."""

    def __init__(self, mlflow: Any, name: str, group: str, known: str | None) -> None:
        self._mlflow = mlflow
        named = {"run_id": known} if known else {"run_name": f"{group}/{name}"}
        self.id: str = mlflow.start_run(**named).info.run_id

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        # Where MLflow keeps files, `loss` is one and cannot be the folder of `loss/pt`.
        named = {name.replace("/", "."): value for name, value in figures.items()}
        self._mlflow.log_metrics(named, step=step, run_id=self.id)

    def close(self, whole: bool) -> None:
        self._mlflow.end_run("FINISHED" if whole else "KILLED")


SERVICES: dict[str, Callable[[Any, str, str, str | None], Service]] = {
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class Sinks:
    """The runs of one training at all services that were asked for.

    A training that was killed goes on in the runs that it had. A service that fails is given up with a
    warning: that its curves cannot be shown is no reason to end a training.

    Args:
      services: their names.
      name: of the training.
      group: what it is a part of.
      directory: of the work.
      resumed: whether it goes on from a checkpoint.

    Raises:
      AyaError: a service is not installed, or starts no run.
    """

    def __init__(
        self, services: Sequence[str], *, name: str, group: str, directory: Path, resumed: bool
    ) -> None:
        self._file = directory / RUNS
        known = _read(self._file) if resumed else {}
        self._runs: dict[str, Service] = {}
        for service in services:
            module = _imported(service)
            try:
                self._runs[service] = SERVICES[service](module, name, group, known.get(service))
            except Exception as error:  # whatever a service raises that has no key or no server
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise AyaError(f"metrics.sinks: {service} starts no run: {reason[0]}") from None
        if self._runs:
            atomic_write(self._file, json.dumps({n: run.id for n, run in self._runs.items()}))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Give the figures of a step to all services."""
        self._each(lambda run: run.write(step, figures))

    def close(self, whole: bool) -> None:
        """End all runs; `whole` unless the training was broken off, and will go on."""
        self._each(lambda run: run.close(whole))
        if whole:
            self._file.unlink(missing_ok=True)

    def _each(self, do: Callable[[Service], None]) -> None:
        for name, run in list(self._runs.items()):
            try:
                do(run)
            except Exception as error:  # whatever a service raises that is out of reach
                log.warning("metrics.sinks: %s fails and gets nothing more: %s", name, error)
                del self._runs[name]
                # MLflow would start no other run beside one that was left open.
                with suppress(Exception):
                    run.close(False)


def _read(file: Path) -> dict[str, str]:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def _imported(service: str) -> Any:
    try:
        module = importlib.import_module(service)
    except ImportError:
        module = None
    # The folder ./wandb, where offline runs are kept, is a package without a file to Python.
    if module is None or module.__file__ is None:
        raise AyaError(
            f"metrics.sinks asks for {service}, which is not installed; pip install {service}"
        )
    return module


def require_services(names: Sequence[str]) -> None:
    """Raise `AyaError` for a service that is unknown, or not installed where the lead is."""
    for name in names:
        if name not in SERVICES:
            raise AyaError(f"metrics.sinks: unknown service '{name}'{nearest(name, SERVICES)}")
        if is_lead():
            _imported(name)


@gin.configurable("metrics", denylist=["name", "group", "directory", "resumed"])
def metric_sinks(
    *, name: str, group: str, directory: Path, resumed: bool, sinks: Sequence[str] = ()
) -> Sinks:
    """Return where a training's curves go beside its own file and TensorBoard; nowhere by default.

    Only the lead process sends them.

    Args:
      name, group, directory, resumed: see `Sinks`.
      sinks: of `wandb` and `mlflow`.

    Raises:
      AyaError: see `require_services` and `Sinks`.
    """
    require_services(sinks)
    services = sinks if is_lead() else ()
    return Sinks(services, name=name, group=group, directory=directory, resumed=resumed)
