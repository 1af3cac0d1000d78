"""The Ray that a job runs on: a cluster's, or one of its own."""

from __future__ import annotations

import logging
import os
import re
import socket

import ray
from ray.exceptions import AuthenticationError

from storage.errors import ClusterError, SubmissionError, TokenRefused

ANSWER_S = 15.0
TOKEN_IS_LOOKED_FOR = (
    "With RAY_AUTH_MODE=token Ray takes the token from RAY_AUTH_TOKEN, from the file that RAY_AUTH_TOKEN_PATH names, "
    "or from ~/.ray/auth_token, in this order."
)


# The address of the Ray that `connect` embedded in this process.
_embedded: str | None = None


def is_embedded() -> bool:
    """Whether the Ray at hand is one that `connect` started in this process."""
    return ray.is_initialized() and ray.get_runtime_context().gcs_address == _embedded


def connect(num_cpus: int | None) -> None:
    """The Ray of RAY_ADDRESS, or one embedded in this process until it ends; the one at hand if there is one.

    Raises ClusterError when nobody answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Of an error that several spans meet the first is told; Ray would print the others with their tracebacks.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        global _embedded
        started = ray.init(
            "local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
        _embedded = started.address_info["gcs_address"]
        return
    if re.match("https?://", address):
        raise SubmissionError(
            f"RAY_ADDRESS is '{address}', where a cluster takes jobs that are submitted to it.",
            "A job that runs here connects to HOST:6379, from one of the cluster's own machines.",
            "Put the word submit before the recipe, or unset RAY_ADDRESS to use this machine alone.",
        )
    _knock(address)
    try:
        ray.init(log_to_driver=True)
    except AuthenticationError as error:
        raise TokenRefused(f"{first_line(error.message)}.", TOKEN_IS_LOOKED_FOR) from None
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"There is no way to the cluster at '{address}', which RAY_ADDRESS names: {first_line(error)}.",
            "It is the address of a running head, whose token, if it asks for one, this process has.",
            f"{TOKEN_IS_LOOKED_FOR} Unset RAY_ADDRESS to use this machine alone.",
        ) from None


def _knock(address: str) -> None:
    """Raises ClusterError when nobody listens at HOST:PORT: Ray itself would ask for two minutes, then exit."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+)\]?:(\d+)", address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"Nobody answers at '{address}', which RAY_ADDRESS names ({error}).",
            "It is the address of a running head, such as HOST:6379.",
            "Start the cluster, or unset RAY_ADDRESS to use this machine alone.",
        ) from None


def first_line(error: object) -> str:
    """The first line of what a library says, without the full stop that a sentence around it has."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:,")
