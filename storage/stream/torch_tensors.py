"""Rows of a stream as torch tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from storage.format.rows import DecodedRows


def to_torch(rows: DecodedRows, device: str | torch.device = "cpu") -> DecodedRows:
    """The same rows with torch tensors for inputs, label and targets; ids stay numpy."""
    return changed(rows, lambda array: tensor(array, device))


def changed(rows: DecodedRows, change: Callable[[Any], Any]) -> DecodedRows:
    """The same rows with every array of inputs, label and targets put through `change`; ids stay as they are."""
    inputs = {name: change(array) for name, array in rows.inputs.items()}
    label = None if rows.label is None else change(rows.label)
    targets = None if rows.targets is None else rows.targets.each(change)
    return DecodedRows(rows.sample_id, inputs, label, targets)


def tensor(array: np.ndarray[Any, Any], device: str | torch.device = "cpu") -> torch.Tensor:
    """An array as a tensor, sharing its memory on the CPU. The caller does not write to a read-only one."""
    array = np.ascontiguousarray(array)
    if array.flags.writeable:  # as those of a stream's batches are; the filter below takes longer than the tensor
        return torch.from_numpy(array).to(device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)
