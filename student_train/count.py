"""How many positions of a batch count, over all workers: what makes their sums one mean."""

from __future__ import annotations

import math
from typing import Any

import torch

from storage.stream.batches import Batch
from student_train.positions import lead


class Count:
    """How many positions of a global batch count. Every worker makes one at each step, and asks once it needs it."""

    def __init__(self, batch: Batch, at: torch.Tensor | slice, world: int, device: str) -> None:
        """at: `counted` of this worker's part."""
        self._world, self._asked = world, None
        if world == 1 or batch.rows.label is None:
            masked = isinstance(at, torch.Tensor)
            self._count: Any = len(at) if masked else batch.global_size * math.prod(lead(batch.rows)[1:])
            return
        # A worker cannot see whether another one's labels are masked, so all ask; the answer comes during the forward.
        mine = len(at) if isinstance(at, torch.Tensor) else batch.rows.label.size
        self._count = torch.tensor(mine, device=device)
        self._asked = torch.distributed.all_reduce(self._count, async_op=True)

    def all(self) -> torch.Tensor | int:
        if self._asked is not None:
            self._asked.wait()
            self._asked = None
        return self._count

    def scale(self) -> torch.Tensor | float:
        """What makes the sum over a worker's positions the mean over all, once it is averaged over workers."""
        count = self.all()
        if isinstance(count, int):
            return self._world / max(count, 1)
        return (self._world / count.clamp(min=1).double()).float()
