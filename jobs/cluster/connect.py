"""The Ray that a job runs on: a cluster's, or one of its own."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
import traceback
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from jobs.cluster.resources import what_there_is
from jobs.errors import ClusterError
from stillhouse_commands import ray_settings
from storage.base.errors import UsageError
from storage.base.redact import redact

log = logging.getLogger("stillhouse.cluster")

ANSWER_S = 15.0
TOKEN_IS_LOOKED_FOR = (
    "With RAY_AUTH_MODE=token Ray takes the token from RAY_AUTH_TOKEN, from the file that RAY_AUTH_TOKEN_PATH names, "
    "or from ~/.ray/auth_token, in this order."
)

# How long the parts of an embedded Ray may take to start, one after the other. Ray gives each of them 30 s, which is
# too little for a machine that swaps or reads its programs over a network.
START_S = 120
_STARTS = ("RAY_raylet_start_wait_time_s", "RAY_gcs_server_port_wait_time_s")

_HOST_AND_PORT = re.compile(r"(?:ray://)?(?:\[([^\[\]/]+)\]|([^\[\]/:]+)):(\d+)")


# The address of the Ray that `connect` embedded in this process.
_embedded_address: str | None = None


def is_embedded() -> bool:
    """Whether the Ray at hand is one that `connect` started in this process."""
    return ray.is_initialized() and ray.get_runtime_context().gcs_address == _embedded_address


def connect(num_cpus: int | None) -> None:
    """The Ray of RAY_ADDRESS, or one embedded in this process until it ends; the one at hand if there is one.

    Logs which one it is. Raises ClusterError when nobody answers at RAY_ADDRESS or the embedded Ray does
    not start, UsageError for a RAY_ADDRESS that is none or asks for another token.
    """
    if ray.is_initialized():
        _announce("The Ray that this process is connected to", None)
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Of an error that several spans meet the first is told; Ray would print the others with their tracebacks.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    address = os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        context = _embedded(num_cpus)
        global _embedded_address
        _embedded_address = ray.get_runtime_context().gcs_address
        _announce("A Ray embedded in this process", context)
        return
    if re.match("https?://", address):
        raise UsageError(
            f"RAY_ADDRESS is '{address}', where a cluster takes jobs that are submitted to it.",
            "A job that runs here connects to HOST:6379, from one of the cluster's own machines.",
            "Put the word submit before the recipe, or unset RAY_ADDRESS to use this machine alone.",
        )
    _knock(address)
    try:
        context = _init(log_to_driver=True)
    except AuthenticationError as error:
        raise UsageError(f"{first_line(error.message)}.", TOKEN_IS_LOOKED_FOR) from None
    except Exception as error:
        if address == "auto":
            raise ClusterError(
                f"RAY_ADDRESS is 'auto', and there is no way to a cluster on this machine: {first_line(error)}.",
                "It stands for a Ray that runs on this machine, as `ray start` starts one.",
                "Start one, name another machine's as HOST:6379, or unset RAY_ADDRESS to use this machine alone.",
            ) from None
        raise ClusterError(
            f"There is no way to the cluster at '{address}', which RAY_ADDRESS names: {first_line(error)}.",
            "It is the address of a running head, whose token, if it asks for one, this process has.",
            f"{TOKEN_IS_LOOKED_FOR} Unset RAY_ADDRESS to use this machine alone.",
        ) from None
    _announce(f"The Ray cluster of RAY_ADDRESS={address}", context)


def _embedded(num_cpus: int | None) -> Any:
    """Start a Ray of this process's own, with one more try. Raises ClusterError."""
    for name in _STARTS:
        os.environ.setdefault(name, str(START_S))
    begun = time.monotonic()
    try:
        return _start(num_cpus)
    except (OSError, ValueError) as error:
        raise _not_started(error) from error  # a path or a setting, which stays what it is
    except Exception as error:
        if time.monotonic() - begun > START_S / 2:
            raise _not_started(error) from error
        log.warning("The embedded Ray did not start: %s. Trying once more.", redact(first_line(error)))
    try:
        return _start(num_cpus)
    except Exception as error:
        raise _not_started(error) from error


def _start(num_cpus: int | None) -> Any:
    try:
        return _init(
            "local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
    except BaseException as error:
        _end_half_started(error)
        raise


def _init(*address: str, **settings: Any) -> Any:
    """`ray.init` with workers that import as this process does, and that keeps a handler of SIGTERM.

    Ray's own handler ends the process with exit code 1 and no sentence.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return ray.init(*address, **settings, **ray_settings())
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _not_started(error: Exception) -> ClusterError:
    return ClusterError(
        f"The embedded Ray did not start: {first_line(error)}.",
        "Ray starts processes on this machine, whose sockets and logs lie below RAY_TMPDIR, TMPDIR or /tmp and whose "
        "objects lie in /dev/shm.",
        "Free memory and disk, or wait for other work to end, and run the same command again. Where the path is too "
        f"long or may not be written, set RAY_TMPDIR to a short one. {_STARTS[0]} (now {os.environ[_STARTS[0]]}) "
        "gives it longer. RAY_ADDRESS=HOST:6379 uses a cluster instead.",
    )


def _end_half_started(error: BaseException) -> None:
    """End the processes of a node that did not come up. Ray keeps no reference to it, so its `shutdown` does not."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node: Any = frame.f_locals.get("self")
        if hasattr(node, "kill_all_processes") and hasattr(node, "all_processes"):
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    ray.shutdown()


def _announce(what: str, context: Any) -> None:
    """Log one line about the Ray that was reached. context: what `ray.init` returned, where it was called."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    facts = [f"{nodes} node{'s' if nodes != 1 else ''}", what_there_is()]
    version = getattr(context, "ray_version", None)
    if version not in (None, ray.__version__):
        facts.append(f"Ray {version} (here {ray.__version__})")
    if getattr(context, "dashboard_url", None):
        facts.append(f"dashboard {context.dashboard_url}")
    log.info("%s", redact(f"{what}, at {ray.get_runtime_context().gcs_address}: {', '.join(facts)}."))


def _knock(address: str) -> None:
    """Raises UsageError for an address of no form that Ray knows, and ClusterError when nobody listens there.

    Ray itself would ask for two minutes, then exit.
    """
    found = _HOST_AND_PORT.fullmatch(address)
    if found is None:
        # Other schemes are those of packages that are installed beside Ray.
        if address == "auto" or re.match(r"(?!ray:)\w+://", address):
            return
        raise UsageError(
            f"RAY_ADDRESS is '{address}'.",
            "It is HOST:PORT, ray://HOST:PORT, auto (the Ray on this machine) or local (one of the job's own).",
            "Mend it, or unset it to use this machine alone.",
        )
    try:
        socket.create_connection((found[1] or found[2], int(found[3])), timeout=ANSWER_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ClusterError(
            f"Nobody answers at '{address}', which RAY_ADDRESS names ({error}).",
            "It is the address of a running head, such as HOST:6379.",
            "Start the cluster, or unset RAY_ADDRESS to use this machine alone.",
        ) from None


def first_line(error: object) -> str:
    """The first line of what a library says, without the full stop that a sentence around it has."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:,")
