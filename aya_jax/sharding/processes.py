"""The processes of a run: one a host, started together, each with its own devices."""

import json
import os
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from aya_jax.errors import AyaError

T = TypeVar("T")

# A process that is not heard of for so many seconds is lost, and ends the others.
HEARTBEAT = 30
# How long a process waits for the others at a barrier, in seconds: reading a model takes minutes.
PATIENCE = 3600


def start_processes() -> None:
    """Join the other processes of the run, where the environment says that there are several.

    `AYA_PROCESSES` is their number, with `AYA_COORDINATOR` (host:port of the first) and `AYA_PROCESS`
    (which of them this is, from 0); or it is `auto`, and jax finds the others by what Cloud TPU, GKE
    or Slurm tell. To be called before jax is used.

    Raises:
      AyaError: the environment is incomplete.
    """
    number = os.environ.get("AYA_PROCESSES", "1")
    if number == "1":
        return
    if number == "auto":
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
        return
    try:
        place = os.environ["AYA_COORDINATOR"]
        total, own = int(number), int(os.environ["AYA_PROCESS"])
    except (KeyError, ValueError):
        raise AyaError(
            "AYA_PROCESSES must be a number, with AYA_COORDINATOR=host:port and AYA_PROCESS=0, 1, ..., "
            "or 'auto'"
        ) from None
    jax.distributed.initialize(place, total, own, heartbeat_timeout_seconds=HEARTBEAT)


def is_lead() -> bool:
    """Return whether this is the process that writes files and talks."""
    return jax.process_index() == 0


def _client() -> Any:
    from jax._src.distributed import global_state

    return global_state.client


def barrier(name: str) -> None:
    """Wait for all processes; by their coordinator and not by devices, so in any thread.

    Args:
      name: says in an error where a process was missed; each use of a name is a barrier of its own.
    """
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"{name}:{next(_uses(name))}", PATIENCE * 1000)


_COUNTS: dict[str, Any] = {}


def _uses(name: str) -> Any:
    return _COUNTS.setdefault(name, count())


def from_lead(value: Any) -> Any:
    """Return the lead's JSON-able `value` in all processes."""
    if jax.process_count() == 1:
        return value
    key = f"aya/from_lead/{next(_uses('from_lead'))}"
    if is_lead():
        _client().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_client().blocking_key_value_get(key, PATIENCE * 1000))


def agreed(flag: bool) -> bool:
    """Return whether any process says True. A collective over the devices: for the main thread."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(flag).any())


def said_first(name: str, value: Any = None) -> Any:
    """Return the JSON-able value that the first process to give one gave under `name`, None so far.

    Never waits, and asks no device: cheap enough for every step.
    """
    if jax.process_count() == 1:
        return _SAID.setdefault(name, value) if value is not None else _SAID.get(name)
    key, client = f"aya/said/{name}", _client()
    try:
        if value is not None:
            client.key_value_set(key, json.dumps(value))
    except jax.errors.JaxRuntimeError as error:
        if "ALREADY_EXISTS" not in str(error):
            raise
    try:
        return json.loads(client.key_value_try_get(key))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


_SAID: dict[str, Any] = {}


def from_all(name: str, value: Any) -> list[Any]:
    """Return the JSON-able values of all processes, in their order; by their coordinator, in any thread.

    Args:
      name: as in `barrier`; uses of one name must come in the same order in every process.
      value: this process's.
    """
    if jax.process_count() == 1:
        return [value]
    use, own = next(_uses(f"from_all {name}")), jax.process_index()

    def key(use: int, process: int) -> str:
        return f"aya/{name}/{use}/{process}"

    _client().key_value_set(key(use, own), json.dumps(value))
    texts = [
        _client().blocking_key_value_get(key(use, process), PATIENCE * 1000)
        for process in range(jax.process_count())
    ]
    # Whoever has set this value has read all that were set before it.
    if use:
        _client().key_value_delete(key(use - 1, own))
    return [json.loads(text) for text in texts]


def together(name: str, work: Callable[[], T]) -> list[T]:
    """Do `work` in every process, and return what came of it in each; what fails in one fails in all.

    Args:
      name: as in `from_all`.
      work: returns something JSON-able.

    Raises:
      AyaError: the first process's error, the same one in all. A single process's own exceptions pass.
    """
    if jax.process_count() == 1:
        return [work()]
    own: T | None = None
    failed: Exception | None = None
    fault = None
    try:
        own = work()
    except AyaError as error:
        failed, fault = error, str(error)
    except Exception as error:
        failed = error
        said = " ".join(f"{type(error).__name__}: {error}".split())
        fault = f"process {jax.process_index()} failed: {said}"
    outcomes = from_all(name, [own, fault])
    for _, each in outcomes:
        if each is not None:
            raise AyaError(each) from failed
    return [value for value, _ in outcomes]
