"""Which actors hang: a deadline from how long steps have taken so far. Decisions only, no Ray and no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# A step of an actor: it loads its teacher, or labels a batch (or reads or writes a span around it).
Step = Literal["load", "label"]

# How many times the longest step so far a step may take, and the least share of the timeout that it may.
_TIMES, _LEAST = 20.0, 1 / 6


@dataclass(frozen=True)
class Hang:
    """An actor that has done nothing for `seconds`, where `allowed` are."""

    number: int
    step: Step
    seconds: float
    allowed: float

    def __str__(self) -> str:
        what = "did not load its teacher" if self.step == "load" else "finished no batch"
        return f"It {what} for {self.seconds:.0f} s, where {self.allowed:.0f} are allowed (ray.hang_timeout_s)."


class Watch:
    """Times the steps of actors, which are known by number.

    timeout_s: what a step may take while none of its kind has ended; None for no limit. After that a step may take 20
    times the longest one so far, and at least a sixth of the timeout.
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

    def progressed(self, number: int, now: float) -> None:
        """A step ended, and the next one of its kind begins."""
        if number in self._running:
            step, since = self._running[number]
            self._longest[step] = max(self._longest.get(step, 0.0), now - since)
            self._running[number] = step, now

    def ended(self, number: int) -> None:
        """The actor has nothing to do, or is gone."""
        self._running.pop(number, None)

    def hanging(self, now: float) -> list[Hang]:
        if self._timeout_s is None:
            return []
        allowed = {step: self._allowed(step) for step in ("load", "label")}
        return [
            Hang(number, step, now - since, allowed[step])
            for number, (step, since) in self._running.items()
            if now - since > allowed[step]
        ]

    def _allowed(self, step: Step) -> float:
        assert self._timeout_s is not None
        if step not in self._longest:
            return self._timeout_s
        return max(_LEAST * self._timeout_s, _TIMES * self._longest[step])
