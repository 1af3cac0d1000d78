"""A submitted job followed to its end: its log as it comes, its fate, and the exit code of whoever waits for it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.console import say
from jobs.errors import ClusterError
from storage.base.redact import redact


class Head(Protocol):
    """What is asked of a cluster; `jobs.cluster.head.Head` in earnest."""

    address: str

    def details(self, submission_id: str) -> Any: ...

    def tail(self, submission_id: str) -> AsyncIterator[str]: ...


@dataclass(frozen=True)
class Fate:
    """How a job stands, as the command answers it."""

    submission_id: str
    address: str
    status: str
    message: str | None = None
    driver_exit_code: int | None = None

    def exit_code(self) -> int:
        """A failed job's own code where it is one of ours: a wrong recipe is another thing than a lost machine."""
        if self.status == "SUCCEEDED":
            return 0
        return self.driver_exit_code if self.status == "FAILED" and self.driver_exit_code in (1, 2, 3) else 1


def fate(head: Head, submission_id: str) -> Fate:
    details = head.details(submission_id)
    # A failed job's message goes on with the last 20,000 characters of its log.
    message = (details.message or "").partition(", last available logs")[0].strip() or None
    return Fate(submission_id, redact(head.address), str(details.status), redact(message), details.driver_exit_code)


def is_over(details: Any) -> bool:
    return str(details.status) in ("SUCCEEDED", "FAILED", "STOPPED")


class Follower:
    """Shows a job's log on stderr until the job is over.

    quiet_s: after how long without a line the head is asked whether the job is still there;
    patience_s: how long a head may be away before following it is given up.
    """

    def __init__(self, head: Head, submission_id: str, quiet_s: float = 15.0, patience_s: float = 60.0) -> None:
        self._head, self._id = head, submission_id
        self._quiet_s, self._patience_s = quiet_s, patience_s
        self._shown = 0

    def to_the_end(self) -> Fate:
        """Raises ClusterError when the head is away for too long."""
        while True:
            try:
                asyncio.run(self._show_log())
            except Exception as error:
                # Whatever broke it, the log is a courtesy; the head knows the job's fate.
                say(f"The log's connection dropped ({type(error).__name__}); asking again.")
            if is_over(self._details()):
                return fate(self._head, self._id)
            time.sleep(min(1.0, self._quiet_s))

    async def _show_log(self) -> None:
        log, seen = self._head.tail(self._id), 0
        while True:
            line = asyncio.ensure_future(_next(log))
            while not (await asyncio.wait([line], timeout=self._quiet_s))[0]:
                # A connection may be dead without a word, as after a laptop's sleep.
                if is_over(await asyncio.to_thread(self._head.details, self._id)):
                    line.cancel()
                    return
            text = line.result()
            if text is None:
                return
            # A new connection tells the log from its beginning.
            new = text[max(0, self._shown - seen) :]
            seen += len(text)
            if new:
                self._shown = seen
                sys.stderr.write(new)
                sys.stderr.flush()

    def _details(self) -> Any:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return self._head.details(self._id)
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(min(2.0, self._quiet_s))


async def _next(log: AsyncIterator[str]) -> str | None:
    return await anext(log, None)
