"""The digits' student: one hidden layer, some 1,200 parameters."""

from __future__ import annotations

import torch
from torch import nn


class StudentNet(nn.Module):
    """Images [P, 1, 8, 8] of 0 to 16 to logits [P, 10]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image.to(next(self.parameters()).dtype) / 16)


def build(hidden: int = 16) -> StudentNet:
    return StudentNet(hidden)
