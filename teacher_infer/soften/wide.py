"""What softening for `topk` takes from whole vocabularies: by a GPU's compiled passes, or what a CPU does best.

Legend: C positions of a block, V classes, B blocks of classes, N classes of one, G temperatures, K kept ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from teacher_infer.soften.blocks import block_rows, padding
from teacher_infer.soften.compiled import compiled_for
from teacher_infer.soften.passes import CLASSES, LOWEST, finite, moments

if TYPE_CHECKING:
    import torch


class Wide(Protocol):
    """Logits [P, V] of one device, worked on block of positions by block."""

    rows: int
    """Positions of a block: the C of all results, whatever was loaded."""
    dtype: torch.dtype
    """Of the logits."""

    def load(self, logits_CV: torch.Tensor) -> None:
        """The block that the others are of. One of fewer rows is padded."""
        ...

    def maxima(self) -> torch.Tensor:
        """The highest of each block of classes [C, B]."""
        ...

    def gather(self, ids_Cn: torch.Tensor) -> torch.Tensor:
        """Logits at ids, [C, n] float32, or of the first rows only; -inf at ids beyond the classes."""
        ...

    def tails(
        self, ids_CK: torch.Tensor, last_C1: torch.Tensor, highest_C1: torch.Tensor, grid: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For each T, of x = (z - highest) / T over all ids but these: sum e^x and sum e^x x, [C, G] each; and [C]
        whether the row is a distribution: no NaN, no +inf, not all -inf.

        last_C1: the logit of the last of the ids, which come before all others in the order of (logit, lowest id).
        """
        ...

    def moments(
        self, highest: torch.Tensor, sums_CG: torch.Tensor, weighted_CG: torch.Tensor, grid: Sequence[float]
    ) -> tuple[torch.Tensor, ...]:
        """See the function of that name."""
        ...


def wide(logits_PV: torch.Tensor, k: int, grid: tuple[float, ...]) -> Wide:
    """How to work on these logits: the same way for all of one process that agree in all but P."""
    return compiled_for(logits_PV, k, grid) or Eager(logits_PV)


class Eager:
    """In workspaces of float32: torch's own operations, one after the other, on what a core's cache holds."""

    def __init__(self, logits_PV: torch.Tensor) -> None:
        import torch

        classes = logits_PV.shape[1]
        self.rows = block_rows(logits_PV)
        shape = (self.rows, -(-classes // CLASSES) * CLASSES)
        self._z = torch.full(shape, -torch.inf, dtype=torch.float32, device=logits_PV.device)
        self._x, self._e = torch.empty_like(self._z), torch.empty_like(self._z)
        self._classes, self.dtype = classes, logits_PV.dtype

    def load(self, logits_CV: torch.Tensor) -> None:
        self._z[: len(logits_CV), : self._classes] = logits_CV
        if len(logits_CV) < self.rows:
            self._z[len(logits_CV) :, : self._classes] = padding(logits_CV)

    def maxima(self) -> torch.Tensor:
        return self._z.view(self.rows, -1, CLASSES).amax(dim=2)

    def gather(self, ids_Cn: torch.Tensor) -> torch.Tensor:
        return self._z.gather(1, ids_Cn)

    def tails(
        self, ids_CK: torch.Tensor, last_C1: torch.Tensor, highest_C1: torch.Tensor, grid: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        z_CV = self._z[:, : self._classes]
        # torch's amax gives NaN where any value is NaN.
        valid_C = torch.isfinite(z_CV.amax(dim=1))
        self._z.scatter_(1, ids_CK, -torch.inf)
        highest_C1 = finite(highest_C1)
        sums: dict[float, tuple[torch.Tensor, torch.Tensor]] = {}
        for temperature in sorted(grid, reverse=True):
            if temperature in sums:
                continue
            x = torch.sub(self._z, highest_C1, out=self._x)
            if temperature != 1.0:
                x.mul_(1 / temperature)
            # What is infinitely low would give 0 times infinity.
            e = torch.exp(x.clamp_(min=LOWEST), out=self._e)
            sums[temperature] = e.sum(dim=1), torch.linalg.vecdot(e, x)
            if temperature / 2 in grid:
                # e^(2x): an exponential costs more than all else that is done to a tail.
                e.mul_(e)
                sums[temperature / 2] = e.sum(dim=1), torch.linalg.vecdot(e, x) * 2
        sums_CG, weighted_CG = (torch.stack(column, dim=1) for column in zip(*(sums[t] for t in grid), strict=True))
        return sums_CG, weighted_CG, valid_C

    def moments(
        self, highest: torch.Tensor, sums_CG: torch.Tensor, weighted_CG: torch.Tensor, grid: Sequence[float]
    ) -> tuple[torch.Tensor, ...]:
        return moments(highest, sums_CG, weighted_CG, tuple(grid))
