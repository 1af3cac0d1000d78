"""Rows of a stream as torch tensors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from storage.shard import Rows
from storage.targets import DenseTargets


def to_torch(rows: Rows, device: str | torch.device = "cpu") -> Rows:
    """The same rows with torch tensors for inputs, label and targets; ids stay numpy."""
    targets = rows.targets
    if targets is not None:
        targets = DenseTargets(tensor(targets.logits_PV, device), tensor(targets.temperature_P, device))
    inputs: dict[str, Any] = {name: tensor(array, device) for name, array in rows.inputs.items()}
    label: Any = None if rows.label is None else tensor(rows.label, device)
    return Rows(rows.sample_id, inputs, label, targets)


def tensor(array: np.ndarray[Any, Any], device: str | torch.device = "cpu") -> torch.Tensor:
    """An array as a tensor, sharing its memory on the CPU. The caller does not write to a read-only one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)
