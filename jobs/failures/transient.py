"""Recognises errors of libraries and of a user's code that may pass: another try may succeed."""

from __future__ import annotations

from jobs.errors import ClusterError, DeviceLost
from jobs.failures.device_lost import is_device_lost
from jobs.failures.out_of_memory import chain, is_out_of_memory
from storage.base.errors import StoreLost
from storage.objectstore.client_errors import NETWORK_ERRNO

PASSING_ERRORS = (StoreLost, DeviceLost, ClusterError)

# What gloo and NCCL say, mostly in a RuntimeError, when another worker is gone.
_PEER_SIGNS = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting"),
    *("NCCL communicator was aborted", "NCCL error", "ncclRemoteError", "ncclSystemError", "Socket Timeout"),
)
# Faults of the program or of what is installed, which look like those of a device.
_FINAL_SIGNS = (
    "device-side assert",
    "no kernel image is available",
    "invalid device ordinal",
    "invalid device function",
)


def is_passing(error: BaseException) -> bool:
    """Whether a network, a store, a device or another worker failed. Everything that is not known to pass does not."""
    if is_out_of_memory(error):
        return False  # the same batch needs as much memory again
    if any(sign in str(one) for one in chain(error) for sign in _FINAL_SIGNS):
        return False
    return is_device_lost(error) or any(map(_passes, chain(error, suppressed=False)))


def is_network_failure(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, is a lost connection or one that took too long."""
    return any(map(_is_of_network, chain(error, suppressed=False)))


def _passes(error: BaseException) -> bool:
    peer_lost = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER_SIGNS)
    return isinstance(error, PASSING_ERRORS) or peer_lost or _is_of_network(error)


def _is_of_network(error: BaseException) -> bool:
    lost = isinstance(error, OSError) and error.errno in NETWORK_ERRNO
    return lost or isinstance(error, ConnectionError | TimeoutError)
