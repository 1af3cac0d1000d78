"""A small teacher's recipe, its weights and its source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def weights(toys: Path, tmp_path: Path) -> str:
    """Weights of the toys' linear teacher (4 features, 3 classes)."""
    import stillhouse_toys
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(7)
    path = tmp_path / "teacher.safetensors"
    save_file(stillhouse_toys.linear().state_dict(), path)
    return str(path)


@pytest.fixture
def recipe(tmp_path: Path, weights: str) -> Callable[..., dict[str, Any]]:
    """A complete recipe as a dict; two arguments go to the toys, the rest replaces the recipe's keys."""

    def make(teacher_arguments: Any = None, source_arguments: Any = None, **replaced: Any) -> dict[str, Any]:
        return {
            "name": "toy",
            "store": str(tmp_path / "store"),
            "source": {"function": "stillhouse_toys:rows", "arguments": source_arguments or {}},
            "teacher": {
                "factory": "stillhouse_toys:linear",
                "arguments": teacher_arguments or {},
                "weights": weights,
                "dtype": "float32",
                "batch_size": 8,
            },
            "targets": {"encoding": "dense", "temperature": 2.0},
            "span_rows": 10,
            "tracking": {"uri": False},
            **replaced,
        }

    return make
