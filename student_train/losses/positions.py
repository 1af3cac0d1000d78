"""Which positions count: those with a target for soft losses, those with a label for cross entropy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from storage.encodings.targets import IGNORED, Targets
from storage.format.rows import DecodedRows

# What a loss compares the student with.
Needs = Literal["targets", "label"]

# Wide enough for any id; torch does little with these as they are.
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def lead(rows: DecodedRows) -> tuple[int, ...]:
    """The axes of positions: (R,) of classified samples, (R, L) of sequences."""
    if rows.targets is not None:
        return rows.targets.lead
    return (len(rows),) if rows.label is None else tuple(rows.label.shape)


def mask_of(rows: DecodedRows, needs: Needs) -> Any:
    """[R] or [R, L] bool, numpy or torch as the rows are: the positions that count for a loss; None means all."""
    if needs == "targets":
        return None if rows.targets is None else rows.targets.mask_P
    return None if rows.label is None else rows.label != IGNORED


def indices(mask: Any) -> torch.Tensor | slice:
    """Where a mask is True, all axes made one; slice(None) where that is everywhere. A GPU waits for the answer."""
    if mask is None:
        return slice(None)
    mask_P = torch.as_tensor(mask).reshape(-1)
    return slice(None) if bool(mask_P.all()) else mask_P.nonzero()[:, 0]


def take(targets: Targets, at: torch.Tensor | slice) -> Targets:
    """Targets of some positions, one axis of them."""
    return targets.flat().each(lambda array: _taken(array, at))


def kept(rows: DecodedRows, at: torch.Tensor | slice) -> DecodedRows:
    """Label and targets of some positions, one axis of them; the inputs are left out."""
    label: Any = None if rows.label is None else _taken(torch.as_tensor(rows.label).reshape(-1), at)
    targets = None if rows.targets is None else take(rows.targets, at)
    return replace(rows, sample_id=np.empty(0), inputs={}, label=label, targets=targets)


def _taken(value: torch.Tensor, at: torch.Tensor | slice) -> torch.Tensor:
    if isinstance(at, slice):
        return value[at]
    return (value.long() if value.dtype in _UNSIGNED else value)[at]


def count_positions(*of: Targets | torch.Tensor) -> torch.Tensor:
    """How many positions of the global batch count, summed over all ranks: [] int64, at least 1.

    of: what the loss is given: `batch.targets`, whose mask counts, or `batch.label`, whose labels other than -100
    count; of several micro-batches, where they make one batch. DistributedDataParallel averages over ranks, so with
    `loss_P.sum() * world / count_positions(batch.targets)` the gradient is that of the mean over the global batch.
    Every rank calls it once a step, with the batch on the device of its process group.
    """
    count = torch.stack([_mask(one).sum() for one in of]).sum()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
    return count.clamp(min=1)


def _mask(of: Targets | torch.Tensor) -> torch.Tensor:
    if isinstance(of, torch.Tensor):
        return of != IGNORED
    return torch.ones(of.lead, dtype=torch.bool) if of.mask_P is None else torch.as_tensor(of.mask_P)
