"""Logits of many kinds of distributions, and a look at targets' arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from storage.encodings.targets import Targets
from teacher_infer.soften import compiled, passes


def made(kind: str) -> torch.Tensor:
    """Logits [P, V] of distributions of one kind."""
    normal = torch.randn(64, 50, generator=torch.Generator().manual_seed(1))
    one_hot = torch.zeros(5, 7)
    one_hot[torch.arange(5), torch.arange(5)] = 200
    return {
        "flat": torch.full((3, 50), 4.25),
        "nearly flat": normal / 1000,
        "usual": normal * 4,
        "far from zero": normal * 4 + 3000,
        "sharp": normal * 40,
        "one-hot": one_hot,
        "ties": torch.tensor([[1.0, 5.0, 5.0, 2.0], [3.0, 3.0, 3.0, 3.0], [0.0, -1.0, 9.0, 9.0]]),
        "one class": torch.tensor([[3.0], [-4.0]]),
        "many classes": torch.randn(3, 150_000, generator=torch.Generator().manual_seed(2)) * 2,
        "many classes alike": torch.zeros(2, 150_000),
        "masked as in half the models": torch.tensor([[1.0, torch.finfo(torch.float32).min, 2.0]]),
        "bfloat16": (normal * 8).bfloat16(),
        "float16": (normal * 8).half(),
    }[kind]


KINDS = [
    *("flat", "nearly flat", "usual", "far from zero", "sharp", "one-hot", "ties", "one class", "many classes"),
    *("many classes alike", "masked as in half the models", "bfloat16", "float16"),
]


def small_blocks(monkeypatch: pytest.MonkeyPatch, rows: int = 8) -> None:
    """Blocks of a GPU's passes, of a size that a CPU works on quickly."""
    monkeypatch.setattr(compiled, "_LEAST_ROWS", rows)
    monkeypatch.setattr(compiled, "_MOST_ROWS", rows)


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soften on the CPU by a GPU's passes, as they are before they are compiled."""
    uncompiled = compiled.Passes(passes.maxima_pass, passes.tails_pass, passes.moments)
    monkeypatch.setattr(compiled, "DEVICES", {"cpu"})
    monkeypatch.setattr(compiled, "compiled_passes", lambda *_: uncompiled)
    small_blocks(monkeypatch)


def arrays(targets: Targets) -> list[np.ndarray[Any, Any]]:
    held: list[np.ndarray[Any, Any]] = []
    targets.each(held.append)
    return held
