"""Which actors hang: a deadline from how long steps have taken so far. Decisions only, no Ray and no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

# What an actor does: it loads its teacher, labels a batch, or moves a span's rows: reads, writes or publishes them.
Step = Literal["load", "label", "move"]
_NOT_DONE = {
    "load": "did not load its teacher",
    "label": "finished no batch",
    "move": "neither read nor wrote a part of a span",
}

# How many times the longest step so far a step may take, and the least share of the timeout that a batch may.
_TIMES, _LEAST = 20.0, 1 / 6


@dataclass(frozen=True)
class Hang:
    """An actor that has done nothing for `seconds`, where `allowed` are."""

    number: int
    step: Step
    seconds: float
    allowed: float

    def __str__(self) -> str:
        long = f"{self.seconds:.0f} s, where {self.allowed:.0f} are allowed"
        return f"It {_NOT_DONE[self.step]} for {long} (ray.hang_timeout_s)."


@dataclass(frozen=True)
class Advance:
    """How far an actor is. reports: how many steps it has made since it began; step: what it does now; rows: labelled
    so far, of each span that it has, by shard key."""

    reports: int
    step: Step
    rows: dict[str, int]


class Watch:
    """Times the steps of actors, which are known by number.

    timeout_s: what a step may take while none of its kind has ended; None for no limit. After that it may take 20 times
    the longest one so far: labelling a batch a sixth of the timeout at least, and the others all of it, since they
    depend on a span's size and on what a machine has read before.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._longest: dict[Step, float] = {}
        self._running: dict[int, tuple[Step, float]] = {}

    def began(self, number: int, step: Step, now: float) -> None:
        """now: in seconds, as everywhere here."""
        self._running[number] = step, now

    def watches(self, number: int) -> bool:
        return number in self._running

    def progressed(self, number: int, now: float, following: Step | None = None) -> None:
        """A step ended, and the next one begins: of the same kind, or of another one."""
        if number in self._running:
            step, since = self._running[number]
            self._longest[step] = max(self._longest.get(step, 0.0), now - since)
            self._running[number] = following or step, now

    def ended(self, number: int) -> None:
        """The actor has nothing to do, or is gone."""
        self._running.pop(number, None)

    def pause(self, seconds: float) -> None:
        """The driver itself stood still for so long, as a process that was stopped: it counts for no step."""
        self._running = {number: (step, since + seconds) for number, (step, since) in self._running.items()}

    def hanging(self, now: float) -> list[Hang]:
        if self._timeout_s is None:
            return []
        allowed: dict[Step, float] = {step: self._allowed(step) for step in get_args(Step)}
        return [
            Hang(number, step, now - since, allowed[step])
            for number, (step, since) in self._running.items()
            if now - since > allowed[step]
        ]

    def _allowed(self, step: Step) -> float:
        assert self._timeout_s is not None
        if step not in self._longest:
            return self._timeout_s
        least = _LEAST * self._timeout_s if step == "label" else self._timeout_s
        return max(least, _TIMES * self._longest[step])
