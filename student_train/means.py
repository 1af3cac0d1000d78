"""What a run logs: means over all positions of the steps since the last log, of every worker."""

from __future__ import annotations

import math
import time

import torch

from storage.errors import TrainingError
from student_train.journal import Point


class Means:
    """Sums stay on the device until `take`, which every worker calls at the same steps."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._positions: torch.Tensor | int = 0
        self._rows, self._since = 0, time.monotonic()

    def add(self, values: dict[str, torch.Tensor], positions: torch.Tensor | int, rows: int) -> None:
        """One step's losses, [P] each for this worker's P positions; positions, rows: those of all workers."""
        self._rows += rows
        self._positions = self._positions + positions
        for name, value_P in values.items():
            total = value_P.detach().double().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def take(self, step: int, lr: float) -> list[Point]:
        """One point a metric, and begin anew. Raises TrainingError for what is not a number, on every worker."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for total in self._sums.values():
                torch.distributed.all_reduce(total)
        now, seconds = int(time.time() * 1000), max(time.monotonic() - self._since, 1e-9)
        # Of steps in which nothing counts, sums are 0 too.
        count = max(int(self._positions), 1)
        values = {f"train/{name}": float(total) / count for name, total in self._sums.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} at step {step}.",
                    "A loss is a finite number.",
                    "Lower optimizer.lr, or look at the inputs.",
                )
        values |= {"train/lr": lr, "train/samples_per_s": self._rows / seconds}
        self._sums, self._positions, self._rows, self._since = {}, 0, 0, time.monotonic()
        return [(name, value, step, now) for name, value in values.items()]
