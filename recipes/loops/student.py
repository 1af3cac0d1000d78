"""A small student for whatever a cache holds, and what it minimises."""

from __future__ import annotations

import torch
from torch import nn

from storage.stream import RowGroups, head
from storage.stream.dataset import TorchBatch
from storage.torch import to_torch
from student_train.losses.forward_kl import forward_kl


class Student(nn.Module):
    """All inputs [P, ...], of any shape, through one hidden layer to logits [P, V]."""

    def __init__(self, features: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([value.reshape(len(value), -1).float() for value in inputs], dim=1))


def student(rows: RowGroups, seed: int = 0) -> Student:
    """A student that fits a cache's inputs and classes; the same for the same seed."""
    first = to_torch(head(rows, 1))
    assert first.targets is not None
    torch.manual_seed(seed)
    return Student(sum(value[0].numel() for value in first.inputs.values()), first.targets.classes)


def soft_loss(logits_PV: torch.Tensor, batch: TorchBatch, temperature: float = 2.0) -> torch.Tensor:
    """How far a student is from its teacher on each row of a batch, [P]."""
    assert batch.targets is not None
    return forward_kl(logits_PV, batch.targets, temperature=temperature)
