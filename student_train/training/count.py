"""How many positions of a global batch count, over all workers: what makes their sums one mean."""

from __future__ import annotations

import math
from typing import Any

import torch

from storage.stream.stream import Batch
from student_train.losses.positions import Needs, lead, mask_of

_KINDS: tuple[Needs, Needs] = ("targets", "label")


class Count:
    """The positions of a global batch that count, for soft losses and for labels.

    Every worker makes one at each step; its all-reduce runs while the model's forward does.
    """

    def __init__(self, batch: Batch, world: int, device: str) -> None:
        """batch: this worker's part, on the CPU."""
        self._world, self._work = world, None
        mine = [_count(batch, needs) for needs in _KINDS]
        self._counts: Any = mine
        if world == 1:
            return
        if batch.rows.label is None:
            # Nothing is masked on any worker.
            self._counts = [batch.global_size * math.prod(lead(batch.rows)[1:])] * 2
            return
        # A worker cannot see whether another one's labels are masked.
        self._counts = torch.tensor(mine, device=device)
        self._work = torch.distributed.all_reduce(self._counts, async_op=True)

    def of(self, needs: Needs) -> torch.Tensor | int:
        """The positions of all workers that count for a loss that needs this."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._counts[_KINDS.index(needs)]

    def scale(self, needs: Needs) -> torch.Tensor | float:
        """What makes the sum over a worker's positions the mean over all, once it is averaged over workers."""
        count = self.of(needs)
        if isinstance(count, int):
            return self._world / max(count, 1)
        return (self._world / count.clamp(min=1).double()).float()


def _count(batch: Batch, needs: Needs) -> int:
    mask = mask_of(batch.rows, needs)
    return math.prod(lead(batch.rows)) if mask is None else int(mask.sum())
