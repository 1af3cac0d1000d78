"""The driver of the teacher's Ray job: gives spans to actors, and replaces actors that are gone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from jobs.cluster.connect import connect, is_embedded
from jobs.cluster.metrics import Meter
from jobs.cluster.node_losses import Losses
from jobs.cluster.resources import bundle, refuse_too_large, what_there_is
from jobs.console import Progress, say
from jobs.errors import DeviceLost
from jobs.failures.classification import Failure, classify, delay_s
from storage.base.errors import JobError, RecipeError, StillhouseError, StoreLost
from storage.cache.commits import Commit, settle
from storage.cache.leases import Lease
from teacher_infer.labelling.job_progress import JobProgress
from teacher_infer.labelling.label import Labelled, Seconds
from teacher_infer.labelling.pool import SPANS_IN_FLIGHT, Pool, Task
from teacher_infer.labelling.watch import Advance, Watch
from teacher_infer.planning.plan import Span
from teacher_infer.planning.prepare import Prepared, actor_settings
from teacher_infer.teacher_actor import TeacherActor

# Seconds between two requests for an actor's progress.
_POLL_S = 1.0
# A step of the driver takes a second or two. After so many it was stopped, or its machine was.
_STOOD_STILL_S = 30.0


def label_all(prepared: Prepared, missing: Sequence[tuple[int, Span]], held: Lease, progress: JobProgress) -> None:
    """Label spans, each with the index of its part, on an actor pool, and add them to the progress as they come.

    held: the job's lease, whose file every machine must see. Raises JobError and all that a span raises.
    """
    settings = prepared.recipe.ray
    connect(settings.num_cpus)
    if is_embedded():
        refuse_too_large(bundle(settings.cpus_per_actor, settings.gpus_per_actor))
    driver = _Driver(prepared, Pool([Task(*place) for place in missing], settings, delay_s), held, progress)
    total = sum(span.rows * prepared.parts[part].plan.positions_a_row for part, span in missing)
    try:
        with Progress("teacher", total, "positions") as bar:
            while not driver.pool.over:
                driver.step()
                bar.update(progress.done + driver.positions_in_flight, progress.note())
    finally:
        driver.dismiss()


class _Driver:
    """Does what the pool decides: starts and ends actors, gives them spans, and reports to the pool how calls ended."""

    def __init__(self, prepared: Prepared, pool: Pool, held: Lease, progress: JobProgress) -> None:
        self.pool, self._prepared, self._held, self._progress = pool, prepared, held, progress
        self._settings, self._meter = actor_settings(prepared, held.path), Meter(prepared.recipe.name)
        self._actors: dict[int, Any] = {}
        self._nodes, self._losses = dict[int, str](), Losses()
        self._ready_at: dict[int, float] = {}
        self._asked: dict[Any, tuple[int, Task | None]] = {}
        self._watch, self._seen_at = Watch(prepared.recipe.ray.hang_timeout_s), time.monotonic()
        # Of each actor: the pending request for its progress, when that was sent, and the last answer.
        self._polls: dict[int, Any] = {}
        self._polled_at: dict[int, float] = {}
        self._advances: dict[int, Advance] = {}

    @property
    def positions_in_flight(self) -> int:
        """Positions that were labelled of spans that are not committed yet."""
        rows = {key: rows for advance in self._advances.values() for key, rows in advance.rows.items()}
        each = self._progress.positions_a_row
        return sum(count * each.get(key, 1) for key, count in rows.items() if key not in self._progress.labelled)

    def step(self) -> None:
        """Hire, hear what was answered or wait a second, and give out spans."""
        for number in self.pool.hire(time.monotonic()):
            self._hire(number)
        self.pool.refuse_to_wait(time.monotonic(), what_there_is)
        if self._asked:
            answered, _ = ray.wait(list(self._asked), num_returns=1, timeout=1.0)
            answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if answered else ([], [])
        else:
            answered = []
            time.sleep(0.1)  # until an actor may be hired again
        self._notice_pause()
        for reference in answered:
            self._hear(reference)
        now = time.monotonic()
        for number in list(self._actors):
            while (task := self.pool.give(number, now)) is not None:
                self._asked[self._actors[number].label.remote(task.part, task.span)] = (number, task)
                if not self._watch.watches(number):
                    self._watch.began(number, "move", now)
        self._notice_pause()
        self._poll(now)
        for hang in self._watch.hanging(now):
            self._lose(hang.number, f"It hangs. {hang}", preempted=False)
        for number in self.pool.release():
            self._let_go(number)
        self._meter.actors(self.pool.placed)

    def _notice_pause(self) -> None:
        """While this process was stopped it heard nothing, and no actor hangs for that."""
        now = time.monotonic()
        if now - self._seen_at > _STOOD_STILL_S:
            self._watch.pause(now - self._seen_at)
        self._seen_at = now

    def _poll(self, now: float) -> None:
        """Read the answers about progress, and ask again. An actor that does not answer makes no progress."""
        ready = ray.wait(list(self._polls.values()), num_returns=len(self._polls), timeout=0)[0] if self._polls else []
        for number in [number for number, poll in self._polls.items() if poll in ready]:
            try:
                advance: Advance = ray.get(self._polls.pop(number))
            except RayError:
                continue  # the pending calls of the actor report its end
            if number not in self._advances or advance.reports > self._advances[number].reports:
                self._watch.progressed(number, now, advance.step)
            self._advances[number] = advance
        for number in self._ready_at:
            if number not in self._polls and now - self._polled_at.get(number, 0.0) >= _POLL_S:
                self._polls[number], self._polled_at[number] = self._actors[number].progress.remote(), now

    def dismiss(self) -> None:
        for number in list(self._actors):
            self._let_go(number)

    def _hire(self, number: int) -> None:
        settings = self._prepared.recipe.ray
        try:
            actor = TeacherActor.options(
                num_cpus=settings.cpus_per_actor,
                num_gpus=settings.gpus_per_actor,
                label_selector=settings.label_selector or None,
                max_concurrency=SPANS_IN_FLIGHT,
            ).remote(self._settings)
        except ValueError as error:
            raise RecipeError(f"ray: Ray refuses what an actor asks for: {error}") from None
        self._actors[number] = actor
        self._asked[actor.where.remote()] = (number, None)
        self._asked[actor.ready.remote()] = (number, None)

    def _let_go(self, number: int) -> None:
        ray.kill(self._actors.pop(number))
        self._watch.ended(number)
        for kept in (self._polls, self._polled_at, self._advances):
            kept.pop(number, None)
        self._asked = {reference: asked for reference, asked in self._asked.items() if asked[0] != number}
        self._nodes.pop(number, None)
        ready_at = self._ready_at.pop(number, None)
        if ready_at is not None:
            self._progress.actor_s += time.monotonic() - ready_at

    def _hear(self, reference: Any) -> None:
        if reference not in self._asked:
            return  # of an actor that was let go since
        number, task = self._asked.pop(reference)
        try:
            answer: Any = ray.get(reference)
        except RayTaskError as error:
            cause = error.cause
            if classify(cause) is not Failure.PASSING:
                raise _as_stillhouse_error(error) from None
            if task is None or isinstance(cause, DeviceLost):
                self._lose(number, str(cause), preempted=False)
            else:
                self._try_again(number, task, cause)
        except RayError as error:
            preempted = self._losses.took_its_node(error, self._actors[number], self._nodes.get(number))
            self._lose(number, " ".join(str(error).split()), preempted=preempted)
        else:
            now = time.monotonic()
            self._watch.progressed(number, now)
            if task is not None:
                self._commit(number, task, answer)
                if not self.pool.is_busy(number):
                    self._watch.ended(number)
            elif answer is not None:
                self._nodes[number] = answer
                self.pool.note_placed(number)
                self._watch.began(number, "load", now)
            else:
                self._ready_at[number] = now
                self.pool.note_ready(number)
                self._watch.ended(number)

    def _commit(self, number: int, task: Task, answer: dict[str, Any]) -> None:
        alone = not self._settings["keeps_create"]
        commit = Commit.from_dict(answer["commit"], with_key=alone)
        if alone:
            self._held.check()
            try:
                commit = settle(self._prepared.store, commit)
            except StoreLost as error:
                self._try_again(number, task, error)
                return
        labelled = Labelled(commit, answer["computed"], Seconds(**answer["seconds"]))
        self.pool.done(number, task)
        self._progress.add(task.span, labelled)
        self._meter.span(self._progress.positions(commit), commit.bytes, vars(labelled.seconds), labelled.computed)

    def _try_again(self, number: int, task: Task, error: BaseException) -> None:
        reason = str(error) if isinstance(error, StillhouseError) else f"{type(error).__name__}: {error}"
        say(f"{task.span} will be tried again. {reason}")
        self._failed("store" if isinstance(error, StoreLost) else "passing")
        self.pool.failed(number, task, reason, time.monotonic())
        if not self.pool.is_busy(number):
            self._watch.ended(number)

    def _lose(self, number: int, reason: str, *, preempted: bool) -> None:
        say(f"An actor {'was lost with its node' if preempted else 'died'}; its spans are given again. {reason}")
        self._failed("preempted" if preempted else "crashed")
        self._let_go(number)
        try:
            self.pool.lost(number, preempted=preempted, reason=reason, now=time.monotonic())
        finally:
            self._progress.crashes, self._progress.preemptions = self.pool.crashes, self.pool.preemptions

    def _failed(self, kind: str) -> None:
        self._progress.failed_attempts += 1
        self._meter.failed(kind)


def _as_stillhouse_error(error: RayTaskError) -> StillhouseError:
    cause = error.cause
    if isinstance(cause, StillhouseError):
        return cause
    say(str(error))
    return JobError(f"A span failed: {type(cause).__name__}: {cause}.", remedy="The worker's own account stands above.")
