"""The teacher and the source that the benchmarks run: a small convolutional network on made-up images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

CLASSES = 1000


class ConvTeacher(nn.Module):
    """Images [P, 3, 32, 32] uint8 to logits [P, 1000]; some 30 million multiply-adds an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, CLASSES),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image.float() / 255)


def teacher() -> ConvTeacher:
    return ConvTeacher()


class MarkingTeacher(ConvTeacher):
    """mark: a file that its first forward pass makes, whose date says when that was."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = Path(mark)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not self.mark.exists() and image.device.type != "meta":
            self.mark.touch()
        return super().forward(image)


def marking_teacher(mark: str) -> MarkingTeacher:
    return MarkingTeacher(mark)


def images(count: int, seed: int = 0) -> pa.Table:
    """`count` images of smooth noise, which compress about as photographs do, with ids from 0."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    pixels = coarse.repeat(4, axis=2).repeat(4, axis=3) // 2 + generator.integers(
        0, 64, (count, 3, 32, 32), dtype=np.uint8
    )
    image = pa.array(pixels.reshape(-1).astype(np.uint8))
    for size in (32, 32, 3):
        image = pa.FixedSizeListArray.from_arrays(image, size)
    return pa.table({"sample_id": np.arange(count), "image": image})
