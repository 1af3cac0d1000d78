"""Softened rows: their targets and what is stored beside them, on the device first and as arrays at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage.encodings.targets import Targets


@dataclass(frozen=True)
class Softened:
    """R rows. While they are softened each row is one position, and the fields are tensors of the logits' device; what
    `soften` returns are numpy arrays, and rows may be sequences of L positions.

    targets: as the encoding takes them, before its own rounding; of sequences [R, L, ...].
    entropy_R: float32, of the teacher at T = 1, in nats; of a sequence the mean over its positions with a target.
    top1_R: int32, the likeliest class; None of sequences.
    bad_R: bool, whether a logit of the row is NaN, +inf or overflows, or all logits of a position are -inf. A single
    -inf is a probability of 0.
    """

    targets: Targets
    entropy_R: Any
    top1_R: Any
    bad_R: Any

    def __len__(self) -> int:
        return len(self.bad_R)

    @property
    def positions(self) -> int | None:
        """L; None where a row is one position."""
        lead = self.targets.lead
        return lead[1] if len(lead) > 1 else None

    def each(self, change: Callable[[Any], Any]) -> Softened:
        """The same with every tensor or array put through `change`."""
        top1_R = None if self.top1_R is None else change(self.top1_R)
        return Softened(self.targets.each(change), change(self.entropy_R), top1_R, change(self.bad_R))
