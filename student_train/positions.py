"""Which positions of a batch count: those that have a label, or all where nothing is labelled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from storage.shard import Rows
from storage.targets import IGNORED, DenseTargets

# Wide enough for any id; torch does little with these as they are.
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def lead(rows: Rows) -> tuple[int, ...]:
    """The axes of positions: (R,) of classified samples, (R, L) of sequences."""
    if rows.label is not None:
        return tuple(rows.label.shape)
    targets: Any = rows.targets
    if targets is None:
        return (len(rows),)
    first = targets.temperature_P if isinstance(targets, DenseTargets) else targets.label_log_prob_P
    return tuple(first.shape)


def counted(label: Any) -> torch.Tensor | slice:
    """Indices of the positions whose label is not IGNORED, all axes made one; slice(None) where that is all.

    label: numpy or torch, [R], [R, L] or None; the indices are where the label is.
    """
    if label is None:
        return slice(None)
    counts = torch.as_tensor(label != IGNORED).reshape(-1)
    return slice(None) if bool(counts.all()) else counts.nonzero()[:, 0]


def kept(rows: Rows, at: torch.Tensor | slice) -> Rows:
    """Label and targets of some positions, one axis of them; the inputs are left out."""

    def take(value: torch.Tensor) -> torch.Tensor:
        if isinstance(at, slice):
            return value[at]
        return (value.long() if value.dtype in _UNSIGNED else value)[at]

    label: Any = None if rows.label is None else take(torch.as_tensor(rows.label).reshape(-1))
    targets = None if rows.targets is None else rows.targets.flat().each(take)
    return replace(rows, sample_id=np.empty(0), inputs={}, label=label, targets=targets)
