"""The processes of a run: one a host, started together, each with its own devices."""

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any, NoReturn, TypeVar

import jax
from jax.experimental import multihost_utils

from aya_jax.errors import AyaError

T = TypeVar("T")

# A process that is not heard of for so many seconds is lost, and ends the others.
HEARTBEAT = 30
# How long a process waits for the others, in seconds: what one of them does alone may take hours, and
# one that is lost or has failed ends them anyway.
PATIENCE = 7 * 24 * 3600
# How long one that has failed waits for the others to leave with it, and how often they look, in seconds.
PARTING = 20
GLANCE = 0.5
# The exit status where another process was lost or is not there yet: the same command goes on.
LOST = 77


def start_processes() -> None:
    """Join the other processes of the run, where the environment says that there are several.

    `AYA_PROCESSES` is their number, with `AYA_COORDINATOR` (host:port of the first) and `AYA_PROCESS`
    (which of them this is, from 0); or it is `auto`, and jax finds the others by what Cloud TPU, GKE
    or Slurm tell. To be called before jax is used.

    Raises:
      AyaError: the environment is incomplete, or the coordinator's port is another program's.
      SystemExit: with status `LOST`, the others are not there yet, or no more.
    """
    number = os.environ.get("AYA_PROCESSES", "1")
    if number == "1":
        return
    found: dict[str, Any] = {}
    if number != "auto":
        try:
            found = {
                "coordinator_address": os.environ["AYA_COORDINATOR"],
                "num_processes": int(number),
                "process_id": int(os.environ["AYA_PROCESS"]),
            }
        except (KeyError, ValueError):
            raise AyaError(
                "AYA_PROCESSES must be a number, with AYA_COORDINATOR=host:port and AYA_PROCESS=0, 1, ..., "
                "or 'auto'"
            ) from None
        if found["process_id"] == 0:
            _require_free(found["coordinator_address"])
    try:
        jax.distributed.initialize(
            **found,
            # Under Slurm jax would still look, and give the process one GPU of its host.
            cluster_detection_method="deactivate" if found else None,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=PARTING,
        )
    except ValueError as error:
        raise AyaError(
            f"AYA_PROCESSES={number}: the processes do not find each other "
            f"({str(error).splitlines()[0]}); start all of them, with one AYA_COORDINATOR"
        ) from None
    except RuntimeError as error:
        print(
            f"aya: AYA_PROCESSES={number}: the other processes are not there "
            f"({str(error).splitlines()[0]}); the same command goes on",
            file=sys.stderr,
        )
        raise SystemExit(LOST) from None
    threading.Thread(target=_watch, name="processes", daemon=True).start()


def _require_free(address: str) -> None:
    """Raise `AyaError` where this host's port of the coordinator cannot be had: jax would crash."""
    try:
        with socket.socket() as probe:
            for shared in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                probe.setsockopt(socket.SOL_SOCKET, shared, 1)
            probe.bind(("", int(address.rpartition(":")[2])))
    except (OSError, ValueError, OverflowError) as error:
        raise AyaError(
            f"AYA_COORDINATOR={address}: the port cannot be had ({error}); give host:port with one "
            "that is free"
        ) from None


def _watch() -> None:
    """Leave when another process has failed: the main thread may be waiting for that one."""
    while not _all_well.wait(GLANCE):
        try:
            said = _first(_client(), "leave")
        except jax.errors.JaxRuntimeError:
            # Without a coordinator the client ends the process, and says so.
            return
        if said is not None:
            _leave(said["status"], tells=False)


_all_well = threading.Event()
_leaving = threading.Lock()


def leave(status: int, told: str = "") -> int:
    """End together with the other processes; return the status to exit with.

    With status 0 that is when all have come here. Else the others end as well, wherever they are: with
    the status of the first that failed, which alone tells what happened.

    Args:
      status: the exit status.
      told: what happened, for stderr.
    """
    client = _client()
    if client is None:
        if told:
            print(told, file=sys.stderr)
        return status
    if status == 0:
        client.wait_at_barrier("aya/end", PATIENCE * 1000)
        _all_well.set()
        return 0
    own = {"status": status, "process": _state().process_id}
    said = _first(client, "leave", own)
    if said == own:
        print(told, file=sys.stderr, flush=True)
    _leave(said["status"], tells=said == own)


def _leave(status: int, *, tells: bool) -> NoReturn:
    """End the process when all have come here, or one of them is lost, whatever other threads do."""
    # Two threads may come; the second stays here until the process ends.
    with _leaving:
        try:
            _client().wait_at_barrier("aya/leave", PARTING * 1000)
            if _state().service is not None:
                # The coordinator goes last: without it the others would end for want of it.
                time.sleep(2 * GLANCE)
        except jax.errors.JaxRuntimeError as error:
            status = LOST
            lost = re.findall(r"^\d+$", str(error), re.MULTILINE)
            if tells:
                which = f"process {', '.join(lost)}" if lost else "a process"
                print(
                    f"aya: {which} of {_state().num_processes} is lost; the same command goes on",
                    file=sys.stderr,
                )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def several() -> bool:
    """Return whether other processes were joined; unlike all below, without starting the devices."""
    return _client() is not None


def is_lead() -> bool:
    """Return whether this is the process that writes files and talks."""
    return jax.process_index() == 0


def _state() -> Any:
    """Return what jax knows of the processes; it has no public name for its coordinator's client."""
    from jax._src.distributed import global_state

    return global_state


def _client() -> Any:
    return _state().client


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
    """Return the lead's JSON-able `value` in all processes. For the main thread."""
    if jax.process_count() == 1:
        return value
    key = f"aya/from_lead/{next(_uses('from_lead'))}"
    if is_lead():
        _client().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_client().blocking_key_value_get(key, PATIENCE * 1000))


def by_lead(work: Callable[[], T]) -> T:
    """Do `work` in the lead alone, while the others wait; return what came of it in all.

    For the main thread.

    Args:
      work: returns something JSON-able; may not call for the other processes.

    Raises:
      AyaError: the lead's error, in all.
    """
    return together("by_lead", lambda: work() if is_lead() else None)[0]  # type: ignore[return-value]


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
    return _first(_client(), f"said/{name}", value)


def _first(client: Any, name: str, value: Any = None) -> Any:
    key = f"aya/{name}"
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
