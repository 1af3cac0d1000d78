"""Which failures pass and which are final, for both jobs, and how long to wait before another try.

* NODE_LOST     a worker went with its node, or its node was taken away
* PROCESS_LOST  a worker's process died or hangs
* FINAL         another try would end the same way: bad data, a bug, a lack of memory, a wrong recipe
* PASSING       a store, a network or a device that failed; another try may succeed

Everything that is not known to pass is final.
"""

from __future__ import annotations

import enum
import pickle
import random
from collections.abc import Iterator

from ray.exceptions import (
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    RuntimeEnvSetupError,
    UnserializableException,
)

from jobs.failures.transient import PASSING_ERRORS, is_passing
from storage.base.errors import JobError, StillhouseError, StoreLost

FIRST_DELAY_S, LONGEST_DELAY_S = 2.0, 60.0
_LONG_ATTEMPT_S = 600.0


class Failure(enum.Enum):
    """Kinds of failures. Of several workers' failures the first kind in this order decides."""

    NODE_LOST = "node lost"
    PROCESS_LOST = "process lost"
    FINAL = "final"
    PASSING = "passing"


# Errors of Ray Train and torch.distributed, by name: most are private, or absent from some versions.
_BY_NAME = {
    "PreemptionError": Failure.NODE_LOST,
    "NCCLHangError": Failure.PROCESS_LOST,
    "WorkerHealthCheckTimeoutError": Failure.PROCESS_LOST,
    "WorkerGroupStartupTimeoutError": Failure.FINAL,
    "WorkerGroupStartupFailedError": Failure.PROCESS_LOST,
    "BroadcastCollectiveTimeoutError": Failure.PASSING,
    "CollectiveTimeoutError": Failure.PASSING,
    "DistBackendError": Failure.PASSING,
    "DistNetworkError": Failure.PASSING,
    "DistStoreError": Failure.PASSING,
}
# Errors that cannot be read again, and environments that cannot be made.
_FINAL_OF_RAY = (RaySystemError, RuntimeEnvSetupError, UnserializableException)


def classify(error: BaseException) -> Failure:
    """The kind of a failure, of an attempt as a whole or of one task.

    Of several workers' failures a lost node or process comes first: the other workers fail because of it, in whatever
    way. A fault that is really final is met again by the next attempt.
    """
    kinds = {_classify_one(one) for one in worker_failures(error)}
    return next(kind for kind in Failure if kind in kinds)


def worker_failures(error: BaseException) -> list[BaseException]:
    """The failures of single workers in an error of Ray Train; of any other error, itself."""
    if type(error).__name__ in _BY_NAME:
        return [error]
    return list(getattr(error, "worker_failures", {}).values()) or [error]


def decisive(error: BaseException) -> BaseException:
    """The failure of a worker that decides the kind of the whole."""
    return min(worker_failures(error), key=lambda one: list(Failure).index(_classify_one(one)))


def layers(error: BaseException) -> Iterator[BaseException]:
    """An error, and what Ray wrapped in it, outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        wrapped = ("_base_exc", "health_check_failure", "controller_failure", "cause")
        inner = next((found for name in wrapped if (found := getattr(seen, name, None)) is not None), None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__


def _classify_one(error: BaseException) -> Failure:
    for layer in layers(error):
        if isinstance(layer, StillhouseError):
            return Failure.PASSING if isinstance(layer, PASSING_ERRORS) else Failure.FINAL
        if isinstance(layer, _FINAL_OF_RAY):
            return Failure.FINAL
        if isinstance(layer, RayError) and not isinstance(layer, RayTaskError):
            return Failure.NODE_LOST if _is_of_a_node(layer) else Failure.PROCESS_LOST
        if type(layer).__name__ in _BY_NAME:
            kind = _BY_NAME[type(layer).__name__]
            gone = kind is Failure.PROCESS_LOST and any(_is_of_a_node(one) for one in layers(layer))
            return Failure.NODE_LOST if gone else kind
    return Failure.PASSING if is_passing(list(layers(error))[-1]) else Failure.FINAL


def _is_of_a_node(error: BaseException) -> bool:
    """Ray marks the losses that its autoscaler announced, and says the others in its sentence only."""
    marked = isinstance(error, RayActorError) and getattr(error, "preempted", False)
    return marked or "node has died" in str(error) or "node died" in str(error).lower()


def delay_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubled each time, up to a minute, spread over workers."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** max(0, failures - 1)) * random.uniform(0.5, 1.0)


def portable(error: Exception) -> Exception:
    """The error, or one of the project's own of the same kind where it does not survive pickling between processes.

    Of an exception that cannot be unpickled, as one whose class takes other arguments, Ray would give another error.
    """
    if _survives_pickling(error):
        return error
    text = f"{type(error).__name__}: {error}"
    return StoreLost(text) if classify(error) is Failure.PASSING else JobError(text)


def _survives_pickling(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # whatever a class of the user's raises
        return False


class Retries:
    """Decides whether a failed attempt is made again.

    max_failures: how many attempts may fail that pass or lose a process; max_preemptions: that lose a node.
    """

    def __init__(self, max_failures: int, max_preemptions: int) -> None:
        self._left = {Failure.NODE_LOST: max_preemptions, Failure.PASSING: max_failures}
        self._in_a_row = 0

    def after(self, error: BaseException, attempt_s: float = 0.0) -> float | None:
        """Seconds to wait before the next attempt; None when there is none.

        attempt_s: how long the attempt went on. One of ten minutes was no failure in a row with those before it.
        """
        if attempt_s > _LONG_ATTEMPT_S:
            self._in_a_row = 0
        kind = classify(error)
        if kind is Failure.FINAL:
            return None
        budget = Failure.NODE_LOST if kind is Failure.NODE_LOST else Failure.PASSING
        self._left[budget] -= 1
        self._in_a_row += 1
        return None if self._left[budget] < 0 else delay_s(self._in_a_row)
