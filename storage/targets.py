"""Soft targets in memory, as every encoding gives them back and every loss takes them.

Legend: P positions, V classes (a vocabulary's tokens, a classifier's classes).
Arrays are numpy when they come from a stream, torch after `storage.torch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DenseTargets:
    """Every class's logit, centred on its position's maximum and divided by that position's temperature.

    logits_PV: [P, V] float16 or float32, at most 0; softmax(logits) is the teacher softened by T_c.
    temperature_P: [P] float32, the T_c of each position; softmax(logits * T_c / T) serves any other T.
    """

    logits_PV: Any
    temperature_P: Any

    @property
    def classes(self) -> int:
        return int(self.logits_PV.shape[1])


Targets = DenseTargets
