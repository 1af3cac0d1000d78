"""The command `submit`: a recipe checked here, run by a cluster, and followed until it is done."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import Any

from jobs.cluster.follow import Fate, Follower, fate
from jobs.cluster.submission import Job, Submission, next_id, prepare
from jobs.console import say
from jobs.errors import ClusterError
from storage.base.errors import StillhouseError, UsageError
from storage.base.redact import redact


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file in the working directory, see recipes/")
    parser.add_argument("overrides", nargs="*", help="key.subkey=value, in place of what the recipe says")
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the head's dashboard, as in http://127.0.0.1:8265; "
        "if it is not given, RAY_API_SERVER_ADDRESS or RAY_ADDRESS",
    )
    parser.add_argument("--no-wait", action="store_true", help="return once the cluster has the job")


def submit(job: Job, asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    # Imported once the command line is known to be right: a typing error should not wait for ray.
    from jobs.cluster.head import Head, resolve_address

    address = resolve_address(asked.address, os.environ)
    submission = prepare(job, asked.recipe, asked.overrides)
    for note in submission.notes:
        say(f"Note: {note}")
    head = Head(address)
    submission_id = _hand_over(head, submission)
    if asked.no_wait:
        say(_how_to(submission_id, address))
        return _answer(Fate(submission_id, redact(address), "PENDING"))
    return _answer(*_wait(head, submission_id))


def _hand_over(head: Any, submission: Submission) -> str:
    """The id under which the cluster has the job. Raises UsageError when the same recipe is at work there."""
    jobs = [(one.submission_id, one.status.is_terminal()) for one in head.jobs()]
    submission_id, going = next_id(submission.base, jobs)
    if going is None:
        files = submission.shipped
        say(f"Submitting {submission_id} to {redact(head.address)}: {submission.entrypoint}")
        say(f"Shipped with it from {files.folder}: {files.bytes / 1e6:,.2f} MB, files: {len(files.files):,}.")
        # Of two who submit the same at the same time, Ray takes the id of one.
        going = None if head.submit(submission_id, submission) else submission_id
    if going is not None:
        raise UsageError(
            f"The cluster at {redact(head.address)} has a job of this recipe that has not ended, {going}.",
            "One is enough: another would do the same work.",
            _how_to(going, head.address),
        )
    return submission_id


def _wait(head: Any, submission_id: str) -> tuple[Fate, int]:
    try:
        end = Follower(head, submission_id).to_the_end()
    except KeyboardInterrupt:
        say(f"No longer followed; the job goes on. {_how_to(submission_id, head.address)}")
        return _last_seen(head, submission_id), 130
    except ClusterError as error:
        how_to = f"The job may go on. {_how_to(submission_id, head.address)}"
        raise ClusterError(error.args[0], remedy=how_to) from None
    if end.status == "STOPPED":
        say(f"{submission_id} was stopped before it was done. Submit the recipe again to go on.")
    elif end.status == "FAILED":
        say(f"{submission_id} failed: {end.message or 'its log stands above'}")
    return end, end.exit_code()


def _last_seen(head: Any, submission_id: str) -> Fate:
    try:
        return fate(head, submission_id)
    except StillhouseError:
        return Fate(submission_id, redact(head.address), "UNKNOWN")


def _answer(end: Fate, code: int = 0) -> tuple[dict[str, Any], str, int]:
    return asdict(end), f"{end.submission_id}: {end.status} at {end.address}", code


def _how_to(submission_id: str, address: str) -> str:
    at = f"--address {redact(address)}"
    return (
        f"Follow it: ray job logs {submission_id} --follow {at}. "
        f"Stop it: ray job stop {submission_id} {at}. How it stands: ray job status {submission_id} {at}."
    )
