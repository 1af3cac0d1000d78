"""Which span goes to which actor, and what an actor's end means: decisions only, no Ray in it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from storage.base.errors import JobError
from teacher_infer.planning.config import RaySection
from teacher_infer.planning.plan import Span

# One is with the teacher while the other one is read or written.
SPANS_IN_FLIGHT = 2

# Nodes that go away one after the other while they work on the same span: so many are suspicious, so many no chance.
SUSPECT_AFTER, TAKEN_IN_A_ROW = 3, 20


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
    """The spans that are left, the actors by number, and the budgets. Raises JobError when one is spent.

    delay_s: seconds to wait after so many failures in a row. now: seconds of a clock that only goes on.
    """

    def __init__(self, tasks: Sequence[Task], settings: RaySection, delay_s: Callable[[int], float]) -> None:
        self._todo, self._settings, self._delay_s = deque(tasks), settings, delay_s
        # Spans that wait before they are tried again, and until when; and until when no actor is hired after crashes.
        self._waiting: list[tuple[float, Task]] = []
        self._hire_after = 0.0
        self._actors: dict[int, _Actor] = {}
        self._next, self._short_since = 0, 0.0
        self._blamed: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        # Spans that an actor died over. Each is given alone from then on, so that the next death is one span's.
        self._suspects = set[str]()
        self._crashes_in_a_row = 0
        self.crashes = self.preemptions = 0

    @property
    def over(self) -> bool:
        return not self._todo and not self._waiting and not any(actor.flying for actor in self._actors.values())

    @property
    def placed(self) -> int:
        return sum(actor.placed for actor in self._actors.values())

    def hire(self, now: float) -> list[int]:
        """New actors to ask Ray for: all that spans wait for, since actors that wait are what a cluster grows by."""
        if now < self._hire_after:
            return []
        busy = sum(bool(actor.flying) for actor in self._actors.values())
        wanted = min(self._settings.actors.max, busy + len(self._todo) + len(self._waiting))
        new = range(self._next, self._next + max(0, wanted - len(self._actors)))
        self._next += len(new)
        self._actors.update({number: _Actor() for number in new})
        return list(new)

    def release(self) -> list[int]:
        """Actors to let go: those without a span when none is left to give."""
        left = self._todo or self._waiting
        idle = [] if left else [number for number, actor in self._actors.items() if not actor.flying]
        for number in idle:
            del self._actors[number]
        return idle

    def note_placed(self, number: int) -> None:
        self._actors[number].placed = True

    def note_ready(self, number: int) -> None:
        self._actors[number].ready = True

    def give(self, number: int, now: float) -> Task | None:
        """The next span for an actor, if it may have one more."""
        self._todo.extend(task for until, task in self._waiting if until <= now)
        self._waiting = [waits for waits in self._waiting if waits[0] > now]
        actor = self._actors[number]
        if not actor.ready or not self._todo or len(actor.flying) >= SPANS_IN_FLIGHT:
            return None
        if actor.flying and any(self._is_suspect(task) for task in (*actor.flying, self._todo[0])):
            return None
        task = self._todo.popleft()
        actor.flying.append(task)
        return task

    def is_busy(self, number: int) -> bool:
        """Whether an actor has a span."""
        return bool(self._actors[number].flying)

    def _is_suspect(self, task: Task) -> bool:
        return task.span.shard_key in self._suspects

    def done(self, number: int, task: Task) -> None:
        self._actors[number].flying.remove(task)
        self._suspects.discard(task.span.shard_key)
        self._crashes_in_a_row = 0

    def failed(self, number: int, task: Task, reason: str, now: float) -> None:
        """A span that failed for a reason that may pass is tried again after a while."""
        self._actors[number].flying.remove(task)
        self._failures[task.span.shard_key] += 1
        failures = self._failures[task.span.shard_key]
        if failures > self._settings.max_crashes:
            raise JobError(
                f"{task.span} failed {failures} times. The last time: {reason}",
                f"ray.max_crashes is {self._settings.max_crashes}.",
                "What was committed stays; run the same command to go on.",
            )
        self._waiting.append((now + self._delay_s(failures), task))

    def lost(self, number: int, *, preempted: bool, reason: str, now: float) -> None:
        """An actor is gone, and its spans are given again.

        preempted: it went with its node. A crash is laid to the oldest of its spans, and all of them are
        suspects from then on. Of nodes no span is suspected until many went in a row over the same one.
        """
        actor = self._actors.pop(number)
        if preempted:
            self._lost_with_its_node(actor, reason)
        else:
            self._crashed(actor, reason)
            self._hire_after = now + self._delay_s(self._crashes_in_a_row)

    def _lost_with_its_node(self, actor: _Actor, reason: str) -> None:
        settings = self._settings
        self.preemptions += 1
        for task in actor.flying:
            key = task.span.shard_key
            self._taken[key] += 1
            if self._taken[key] > TAKEN_IN_A_ROW:
                raise JobError(
                    f"{self._taken[key]} nodes went away in a row while they worked on {task.span}. The last: {reason}",
                    "So many are no chance: it may take more memory than a node has.",
                    "What was committed stays. Look at the nodes' logs, and at that span.",
                )
            if self._taken[key] >= SUSPECT_AFTER:
                self._suspects.add(key)
        # What takes its node with it should not take the next one before all else is done.
        self._todo.extendleft(task for task in reversed(actor.flying) if not self._is_suspect(task))
        self._todo.extend(task for task in actor.flying if self._is_suspect(task))
        if self.preemptions > settings.max_preemptions:
            raise JobError(
                f"{self.preemptions} actors were lost with their nodes. The last one: {reason}",
                f"ray.max_preemptions is {settings.max_preemptions}.",
                "What was committed stays; run the same command to go on, or allow more.",
            )

    def _crashed(self, actor: _Actor, reason: str) -> None:
        settings = self._settings
        self._todo.extendleft(reversed(actor.flying))
        self._suspects.update(task.span.shard_key for task in actor.flying)
        self.crashes += 1
        self._crashes_in_a_row += 1
        deaths, blamed = 0, actor.flying[0].span if actor.flying else None
        if blamed is not None:
            self._blamed[blamed.shard_key] += 1
            deaths = self._blamed[blamed.shard_key]
        if deaths > settings.max_crashes:
            what = f"{deaths} actors died over {blamed}"
        # One machine that runs out of memory may take many actors at once.
        elif self._crashes_in_a_row > settings.max_crashes + len(self._actors):
            what = f"{self._crashes_in_a_row} actors died in a row, with nothing committed between"
        else:
            return
        raise JobError(
            f"{what}. The last one: {reason}",
            f"ray.max_crashes is {settings.max_crashes}.",
            "What was committed stays. Look at the teacher's memory, and at Ray's logs of that worker.",
        )

    def refuse_to_wait(self, now: float, has: Callable[[], str]) -> None:
        """Raises JobError once fewer actors than `min` have been placed for longer than the deadline.

        has: what the cluster has, in words.
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
