"""The teacher of benchmarks/chaos.py: it takes its time, and writes down when it began with which row, and where."""

from __future__ import annotations

import os
import time

import numpy as np
import pyarrow as pa
import torch
from torch import nn

CLASSES, FEATURES = 8, 4


class LoggingTeacher(nn.Module):
    """log: a file to which every batch adds 'pid, first row, seconds since 1970'; delay_s: what a batch takes."""

    def __init__(self, log: str, delay_s: float) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES)
        self.log, self.delay_s = log, delay_s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta":
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()} {int(x[0, 0])} {time.time()}\n")
            time.sleep(self.delay_s)
        return self.linear(x / 1000)


def teacher(log: str, delay_s: float) -> LoggingTeacher:
    return LoggingTeacher(log, delay_s)


def rows(count: int) -> pa.Table:
    """Samples whose first feature is their row."""
    row = np.arange(count, dtype=np.float32)
    x = np.stack([row, np.sin(row), np.cos(row), row % 7], axis=1).astype(np.float32)
    columns = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), FEATURES)
    return pa.table({"sample_id": pa.array([f"row-{int(r)}" for r in row]), "x": columns})
