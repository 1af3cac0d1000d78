"""A job's log is shown once, whatever happens to the connection, and its fate is an exit code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from jobs.cluster import submit as command
from jobs.cluster.follow import Fate, Follower, fate
from jobs.cluster.shipped import Shipped
from jobs.cluster.submission import Submission
from jobs.errors import ClusterError
from storage.base.errors import UsageError

ID = "teacher-toy-0123456789ab"
HANGS = "hangs"


class Status(str):
    def is_terminal(self) -> bool:
        return self in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass
class Details:
    status: Status
    message: str | None = None
    driver_exit_code: int | None = None
    submission_id: str | None = ID


@dataclass
class FakeHead:
    """answers: what the head says of the job, one after the other, the last one for ever; an error is raised.

    tails: what each connection to the log brings; an error is raised, and HANGS never ends.
    """

    answers: list[Any]
    tails: list[list[Any]] = field(default_factory=list)
    takes: bool = True
    address: str = "http://me:hunter2@head:8265"
    submitted: list[str] = field(default_factory=list)

    def details(self, submission_id: str) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, Details) else Details(Status(answer))

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        for text in self.tails.pop(0) if self.tails else []:
            if isinstance(text, BaseException):
                raise text
            if text is HANGS:
                await asyncio.sleep(60)
            yield text

    def jobs(self) -> list[Details]:
        return [] if self.answers == [None] else [self.details(ID)]

    def submit(self, submission_id: str, submission: Submission) -> bool:
        self.submitted.append(submission_id)
        return self.takes


def follow(head: FakeHead) -> Fate:
    return Follower(head, ID, quiet_s=0.02, patience_s=0.1).to_the_end()


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", 0, 1),
        ("FAILED", 130, 1),
        ("FAILED", -9, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 1),
        ("STOPPED", 2, 1),
        ("RUNNING", None, 1),
    ],
)
def test_a_fate_is_an_exit_code(status: str, driver: int | None, code: int) -> None:
    assert Fate(ID, "http://head", status, None, driver).exit_code() == code


def test_a_fate_holds_no_log_and_no_password() -> None:
    message = "Job failed with exit code 2, last available logs (truncated to 20,000 chars):\nline\nline"
    found = fate(FakeHead([Details(Status("FAILED"), message, 2)]), ID)
    assert found == Fate(ID, "http://***@head:8265", "FAILED", "Job failed with exit code 2", 2)
    assert fate(FakeHead([Details(Status("PENDING"), "at http://a:b@c")]), ID).message == "at http://***@c"


def test_a_log_that_drops_goes_on_where_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    whole = ["one\n", "two\n", "three\n", "four\n"]
    tails = [[*whole[:2], RuntimeError("gone")], ["one\ntw", "o\nth"], whole]
    assert follow(FakeHead(["RUNNING", "RUNNING", "SUCCEEDED"], tails)).status == "SUCCEEDED"
    shown = capfd.readouterr().err
    assert shown.count("The log's connection dropped (RuntimeError); asking again.\n") == 1
    assert shown.replace("The log's connection dropped (RuntimeError); asking again.\n", "") == "".join(whole)


def test_a_connection_that_is_dead_without_a_word_does_not_hold_up(capfd: pytest.CaptureFixture[str]) -> None:
    assert follow(FakeHead(["RUNNING", "FAILED"], [["one\n", HANGS]])).status == "FAILED"
    assert capfd.readouterr().err == "one\n"


def test_a_head_may_be_away_for_a_while_and_no_longer(capfd: pytest.CaptureFixture[str]) -> None:
    away = ClusterError("The head cannot be reached.")
    assert follow(FakeHead([away, away, "RUNNING", "SUCCEEDED"])).status == "SUCCEEDED"
    with pytest.raises(ClusterError):
        follow(FakeHead([away]))


# What the command makes of it.


def test_a_job_that_was_stopped_or_failed_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    end, code = command._wait(FakeHead(["STOPPED"]), ID)
    assert (end.status, code) == ("STOPPED", 1)
    assert f"{ID} was stopped before it was done. Submit the recipe again to go on." in capfd.readouterr().err
    end, code = command._wait(FakeHead([Details(Status("FAILED"), "it broke", 3)]), ID)
    assert (end.status, code) == ("FAILED", 3)
    assert f"{ID} failed: it broke" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("then", "status"), [("RUNNING", "RUNNING"), (ClusterError("The head cannot be reached."), "UNKNOWN")]
)
def test_an_interrupt_leaves_the_job_alone(then: Any, status: str, capfd: pytest.CaptureFixture[str]) -> None:
    end, code = command._wait(FakeHead([KeyboardInterrupt(), then]), ID)
    assert (end.status, code) == (status, 130)
    said = capfd.readouterr().err
    assert f"the job goes on. Follow it: ray job logs {ID} --follow --address http://***@head:8265." in said
    assert f"Stop it: ray job stop {ID} --address" in said and "hunter2" not in said


def test_the_job_may_go_on_where_the_head_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Follower", lambda head, name: Follower(head, name, 0.02, 0.1))
    with pytest.raises(ClusterError, match=r"^The head is away\. The job may go on\. Follow it: ray job logs"):
        command._wait(FakeHead([ClusterError("The head is away.", "It is expected.", "Start it.")]), ID)


def hand_over(head: FakeHead, tmp_path: Any) -> str:
    return command._hand_over(
        head, Submission(ID, "0123", "python -m stillhouse_commands teacher-infer r.yaml", Shipped(tmp_path, {}))
    )


def test_a_job_is_handed_over_once(tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    new, ended = FakeHead([None]), FakeHead(["FAILED"])
    assert (hand_over(new, tmp_path), hand_over(ended, tmp_path)) == (ID, f"{ID}-2")
    assert "hunter2" not in capfd.readouterr().err
    for head in (FakeHead(["PENDING"]), FakeHead([None], takes=False)):
        with pytest.raises(UsageError, match=rf"has a job of this recipe that has not ended, {ID}\."):
            hand_over(head, tmp_path)
    # The second of two at the same moment tried; the one who saw the other's job did not.
    assert head.submitted == [ID]
