"""A training run in attempts: which failures are followed by another one, and what is said of the last."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from jobs.cluster.resources import asked_for, bundle, what_there_is
from jobs.failures.classification import Retries, decisive, layers
from storage.base.errors import JobError, StillhouseError
from storage.base.redact import redact
from student_train.training.config import RaySection, StudentRecipe

log = logging.getLogger("stillhouse.train")

RAY_LOGS = "/tmp/ray/session_latest/logs, unless Ray has another folder"


def train_in_attempts(
    recipe: StudentRecipe, attempt: Callable[[], dict[str, Any] | Exception], stopped: threading.Event
) -> dict[str, Any]:
    """The answer of the first attempt that gives one; those that failed for a reason that may pass are made again.

    attempt: goes on from the last checkpoint, and gives the run's answer or the error that ended it. stopped: set by an
    interrupt, after which no attempt begins. Raises the last attempt's error as one of the project's own.
    """
    settings = recipe.ray
    retries, attempts = Retries(settings.max_failures, settings.max_preemptions), 1
    while True:
        # After an interrupt Ray is gone, and an attempt would start a new one.
        if stopped.is_set():
            raise KeyboardInterrupt
        begun = time.monotonic()
        answer = attempt()
        if isinstance(answer, dict):
            return answer
        seconds, error = retries.after(answer, time.monotonic() - begun), translate(answer, recipe)
        if seconds is None:
            raise error
        attempts += 1
        run, why = f"{recipe.name}, seed {recipe.seed}", redact(str(error))
        log.warning("%s: attempt %d begins in %.0f s. %s", run, attempts, seconds, why)
        stopped.wait(seconds)


def translate(error: Exception, recipe: StudentRecipe) -> StillhouseError:
    """The project's error inside one of Ray's, or a sentence about another one."""
    found = list(layers(decisive(error)))
    for layer in found:
        if isinstance(layer, StillhouseError):
            return layer
        if type(layer).__name__ == "WorkerGroupStartupTimeoutError":
            return _not_placed(recipe.ray)
    # A remote error's text is its traceback; the last line says what happened.
    lines = [line.strip() for line in str(decisive(error)).splitlines() if line.strip(" ^~")]
    return JobError(
        f"Training failed: {(lines[-1] if lines else type(found[-1]).__name__).rstrip('.')}.",
        remedy=f"Ray's logs have the rest; they lie in the session's folder ({RAY_LOGS}).",
    )


def _not_placed(settings: RaySection) -> JobError:
    return JobError(
        f"{settings.workers} workers could not be placed within {settings.start_timeout_s:g} s. "
        f"{asked_for(resources(settings), settings.label_selector)}; the cluster has {what_there_is()}.",
        f"ray.start_timeout_s is {settings.start_timeout_s:g}.",
        "Ask for less under `ray`, or give the cluster more nodes or time.",
    )


def resources(settings: RaySection) -> dict[str, float]:
    """What one worker takes."""
    return bundle(settings.cpus_per_worker, settings.gpus_per_worker)
