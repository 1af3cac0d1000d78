"""The head of a cluster, which takes jobs over HTTP: asked in bounded time, and answered for in sentences."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from jobs.cluster.connect import ANSWER_S, TOKEN_IS_LOOKED_FOR, first_line
from jobs.cluster.submission import Submission
from jobs.errors import ClusterError
from storage.base.errors import UsageError
from storage.base.redact import redact

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
UPLOAD_S = 600.0

T = TypeVar("T")


def resolve_address(given: str | None, environment: Mapping[str, str]) -> str:
    """Where to submit to: what was given, otherwise what the environment names. Raises UsageError."""
    named = [("--address", given), *((name, environment.get(name)) for name in ADDRESS_VARIABLES)]
    for name, address in named:
        if not address:
            continue
        if not address.startswith(("http://", "https://")):
            raise UsageError(
                f"{name} is '{address}'.",
                "Jobs are submitted to the head's dashboard, over HTTP.",
                "Give --address http://HOST:8265.",
            )
        return address.rstrip("/")
    raise UsageError(
        "No cluster is named.",
        "--address, RAY_API_SERVER_ADDRESS or RAY_ADDRESS names the dashboard of one.",
        "Give --address http://127.0.0.1:8265 for one on this machine, or one that `ray dashboard` leads to.",
    )


class Head:
    """Ray's client for jobs, of which no question takes for ever."""

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        self.address = address
        _quieten()
        with _address_alone():
            self._client: Any = self._ask(lambda: JobSubmissionClient(address))

    def jobs(self) -> list[Any]:
        """Ray's JobDetails of every job that the cluster remembers."""
        return self._ask(self._client.list_jobs)

    def details(self, submission_id: str) -> Any:
        return self._ask(lambda: self._client.get_job_info(submission_id))

    def submit(self, submission_id: str, submission: Submission) -> bool:
        """False when the cluster has a job of this id."""
        try:
            self._ask(
                lambda: self._client.submit_job(
                    submission_id=submission_id,
                    entrypoint=submission.entrypoint,
                    runtime_env={"working_dir": str(submission.shipped.folder)},
                    metadata={"recipe_digest": submission.digest},
                ),
                UPLOAD_S,
            )
        except ClusterError as error:
            if f"{submission_id} already exists" in str(error.__cause__):
                return False
            raise
        return True

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """A job's log from its beginning, as it is written, until the job has ended."""
        return self._client.tail_job_logs(submission_id)

    def _ask(self, question: Callable[[], T], seconds: float | None = None) -> T:
        from ray.exceptions import AuthenticationError

        seconds = seconds or ANSWER_S
        try:
            return _within(seconds, question)
        except AuthenticationError as error:
            raise UsageError(
                f"The cluster at {redact(self.address)} was not entered: {first_line(error.message)}.",
                TOKEN_IS_LOOKED_FOR,
                "Set RAY_AUTH_MODE=token, and put the cluster's token there.",
            ) from None
        except queue.Empty:
            raise self._lost(f"did not answer in {seconds:.0f} s") from None
        except OSError as error:
            # Of requests too; theirs of a connection are not Python's own ConnectionError, and long.
            why = "" if "Connection" in type(error).__name__ else f" ({first_line(error)})"
            raise self._lost(f"cannot be reached{why}") from None
        except (RuntimeError, ValueError, KeyError) as error:
            raise ClusterError(
                f"The cluster at {redact(self.address)} refused: {_last_line(error)}.",
                remedy="`ray job list` and the dashboard say how it is.",
            ) from error

    def _lost(self, what: str) -> ClusterError:
        return ClusterError(
            f"The head at {redact(self.address)} {what}.",
            "Ray's dashboard is expected to answer there.",
            "Start the cluster or the way to it (`ray dashboard CLUSTER.yaml` keeps one open), or mend --address.",
        )


def _within(seconds: float, question: Callable[[], T]) -> T:
    """What a call gives or raises; queue.Empty when it takes longer. Ray's client itself would wait for ever.

    Not TimeoutError, which the call may raise itself.
    """
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((True, question()))
        except BaseException as error:
            answers.put((False, error))

    threading.Thread(target=ask, daemon=True).start()
    answered, value = answers.get(timeout=seconds)
    if not answered:
        raise value
    return value


def _last_line(error: Exception) -> str:
    """What happened, out of a text that may be a traceback of the head's."""
    lines = [line.strip(" .") for line in str(error).splitlines()]
    return ([line for line in lines if line] or [type(error).__name__])[-1]


def _quieten() -> None:
    """Ray's client tells of each package and connection; what matters of it is told here."""
    # Its handlers may be the process's own, which others log to.
    logging.getLogger("ray").setLevel(logging.ERROR)


@contextmanager
def _address_alone() -> Iterator[None]:
    """Without the variables that Ray's client would follow instead of the address that it is given."""
    kept = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
