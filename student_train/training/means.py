"""What a run logs: means over all positions of the steps since the last log, of every worker."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch

from storage.base.errors import JobError
from student_train.training.journal import Point


class Means:
    """Sums stay on the device until `take`, which every worker calls at the same steps.

    Each loss is reported as it is: per position, without its weight and its power of the temperature. `loss` is the
    objective: the sum of the losses times their factors.
    """

    def __init__(self, factors: Mapping[str, float]) -> None:
        """factors: of each loss in the objective."""
        self._factors = dict(factors)
        self._begin()

    def _begin(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor | int] = dict.fromkeys(self._factors, 0)
        self._rows, self._since = 0, time.monotonic()

    def add(self, parts: Mapping[str, torch.Tensor], counts: Mapping[str, torch.Tensor | int], rows: int) -> None:
        """One step's losses, [P] each for this worker's positions; counts, rows: positions and rows of all workers."""
        self._rows += rows
        for name, value_P in parts.items():
            total = value_P.detach().double().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] = self._counts[name] + counts[name]

    def take(self, step: int, lr: float) -> list[Point]:
        """One point a metric, and begin anew. Raises JobError for what is not a number, on every worker."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for total in self._sums.values():
                torch.distributed.all_reduce(total)
        now, seconds = int(time.time() * 1000), max(time.monotonic() - self._since, 1e-9)
        # Of steps in which nothing counts, sums are 0 too.
        means = {name: float(total) / max(int(self._counts[name]), 1) for name, total in self._sums.items()}
        objective = sum(self._factors[name] * mean for name, mean in means.items())
        values = {"train/loss": objective, **{f"train/loss_{name}": mean for name, mean in means.items()}}
        for name, value in values.items():
            if not math.isfinite(value):
                raise JobError(
                    f"{name} is {value} at step {step}.",
                    "A loss is a finite number.",
                    "Lower optimizer.lr, or look at the inputs.",
                )
        values |= {"train/lr": lr, "train/samples_per_s": self._rows / seconds}
        self._begin()
        return [(name, value, step, now) for name, value in values.items()]
