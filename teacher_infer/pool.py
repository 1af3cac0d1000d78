"""Which span goes to which actor, and what an actor's end means: decisions only, no Ray in it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from storage.errors import JobError
from teacher_infer.config import RaySection
from teacher_infer.plan import Span

# One is with the teacher while the other one is read or written.
SPANS_IN_FLIGHT = 2


@dataclass(frozen=True)
class Task:
    """A span of one of the job's caches."""

    part: int
    span: Span


@dataclass
class _Actor:
    """placed: Ray has found it a node; ready: its teacher is loaded. flying: its spans, the oldest first."""

    placed: bool = False
    ready: bool = False
    flying: list[Task] = field(default_factory=list[Task])


class Pool:
    """The spans that are left, the actors by number, and the budgets. Raises JobError when one is spent."""

    def __init__(self, tasks: Sequence[Task], settings: RaySection) -> None:
        self._todo, self._settings = deque(tasks), settings
        self._actors: dict[int, _Actor] = {}
        self._next, self._short_since = 0, 0.0
        self._blamed: Counter[str] = Counter()
        self._lost_answers: Counter[str] = Counter()
        self._crashes_in_a_row = 0
        self.crashes = self.preemptions = 0

    @property
    def over(self) -> bool:
        return not self._todo and not any(actor.flying for actor in self._actors.values())

    @property
    def placed(self) -> int:
        return sum(actor.placed for actor in self._actors.values())

    def hire(self) -> list[int]:
        """New actors to ask Ray for: all that spans wait for, since actors that wait are what a cluster grows by."""
        busy = sum(bool(actor.flying) for actor in self._actors.values())
        wanted = min(self._settings.actors.max, busy + len(self._todo))
        new = range(self._next, self._next + max(0, wanted - len(self._actors)))
        self._next += len(new)
        self._actors.update({number: _Actor() for number in new})
        return list(new)

    def release(self) -> list[int]:
        """Actors to let go: those without a span when none is left to give."""
        idle = [number for number, actor in self._actors.items() if not actor.flying] if not self._todo else []
        for number in idle:
            del self._actors[number]
        return idle

    def note_placed(self, number: int) -> None:
        self._actors[number].placed = True

    def note_ready(self, number: int) -> None:
        self._actors[number].ready = True

    def give(self, number: int) -> Task | None:
        """The next span for an actor, if it may have one more."""
        actor = self._actors[number]
        if not actor.ready or not self._todo or len(actor.flying) >= SPANS_IN_FLIGHT:
            return None
        task = self._todo.popleft()
        actor.flying.append(task)
        return task

    def done(self, number: int, task: Task) -> None:
        self._actors[number].flying.remove(task)
        self._crashes_in_a_row = 0

    def store_lost(self, number: int, task: Task, reason: str) -> None:
        """A span whose store did not answer is tried again, later than all others."""
        self._actors[number].flying.remove(task)
        self._lost_answers[task.span.shard_key] += 1
        if self._lost_answers[task.span.shard_key] > self._settings.max_crashes:
            raise JobError(f"{task.span} failed {self._lost_answers[task.span.shard_key]} times. {reason}")
        self._todo.append(task)

    def lost(self, number: int, *, preempted: bool, reason: str) -> None:
        """An actor is gone, and its spans are given again. A crash is laid to the oldest of them.

        preempted: it went with its node, which nothing here can be blamed for.
        """
        actor = self._actors.pop(number)
        self._todo.extendleft(reversed(actor.flying))
        settings = self._settings
        if preempted:
            self.preemptions += 1
            if self.preemptions > settings.max_preemptions:
                raise JobError(
                    f"{self.preemptions} actors were lost with their nodes. The last one: {reason}",
                    f"ray.max_preemptions is {settings.max_preemptions}.",
                    "What was committed stays; run the same command to go on, or allow more.",
                )
            return
        self.crashes += 1
        self._crashes_in_a_row += 1
        blamed = actor.flying[0].span if actor.flying else None
        if blamed is not None:
            self._blamed[blamed.shard_key] += 1
        deaths = self._blamed[blamed.shard_key] if blamed is not None else 0
        if max(deaths, self._crashes_in_a_row) > settings.max_crashes:
            what = (
                f"{deaths} actors died over {blamed}"
                if deaths > settings.max_crashes
                else (f"{self._crashes_in_a_row} actors died in a row, with nothing committed between")
            )
            raise JobError(
                f"{what}. The last one: {reason}",
                f"ray.max_crashes is {settings.max_crashes}.",
                "What was committed stays. Look at the teacher's memory, and at Ray's logs of that worker.",
            )

    def refuse_to_wait(self, now: float, has: Callable[[], str]) -> None:
        """Raises JobError once fewer actors than `min` have been placed for longer than the deadline.

        now: seconds, of a clock that only goes on; has: what the cluster has, in words.
        """
        settings = self._settings
        needed = min(settings.actors.min, len(self._actors))
        if self.placed >= needed or not self._short_since:
            self._short_since = now
        if now - self._short_since > settings.capacity_timeout_s:
            labels = f" on nodes with {settings.label_selector}" if settings.label_selector else ""
            raise JobError(
                f"Only {self.placed} of at least {needed} actors found room within "
                f"{settings.capacity_timeout_s:.0f} s. Each asks for {settings.cpus_per_actor:g} CPUs and "
                f"{settings.gpus_per_actor:g} GPUs{labels}; the cluster has {has()}.",
                remedy="Ask for less under `ray`, or give the cluster more time (ray.capacity_timeout_s) or nodes. "
                "What was committed stays.",
            )
