"""The digits' teacher: a convolutional network of some 90,000 parameters."""

from __future__ import annotations

import torch
from torch import nn


class TeacherNet(nn.Module):
    """Images [P, 1, 8, 8] of 0 to 16 to logits [P, 10]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(8 * width, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image.to(next(self.parameters()).dtype) / 16))


def build(width: int = 32) -> TeacherNet:
    return TeacherNet(width)
