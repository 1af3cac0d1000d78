"""How many positions a row has, without the teacher's weights."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.models.model_spec import ModelSpec
from storage.samples.samples import Columns, as_samples
from teacher_infer.planning.positions import positions_of


class Tokens(torch.nn.Module):
    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.embedding, self.head, self.pooled = torch.nn.Embedding(11, 4), torch.nn.Linear(4, 11), pooled

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.embedding(ids))
        return logits.mean(dim=1) if self.pooled else logits


@pytest.fixture
def factories(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("stillhouse_tokens")
    module.each, module.pooled = (lambda: Tokens(False)), (lambda: Tokens(True))

    def fails() -> Any:
        raise OSError("no such file")

    module.fails = fails
    monkeypatch.setitem(sys.modules, "stillhouse_tokens", module)


def samples(dtype: Any, label: bool = False) -> pa.Table:
    columns: dict[str, Any] = {
        "sample_id": ["a"],
        "ids": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(6, dtype)), 6),
    }
    return as_samples(pa.table({**columns, **({"label": [3]} if label else {})}), Columns(), "made")


@pytest.mark.parametrize(
    ("factory", "dtype", "label", "found"),
    [
        ("each", np.int32, False, 6),
        ("pooled", np.int32, False, 1),
        ("each", np.float32, False, 1),  # no token ids
        ("each", np.int32, True, 1),  # labelled as a whole, which the job refuses when it asks
        ("fails", np.int32, False, 1),
    ],
)
def test_of_a_factory_without_labels_the_model_tells(
    factories: None, factory: str, dtype: Any, label: bool, found: int
) -> None:
    spec = ModelSpec(f"stillhouse_tokens:{factory}", {}, "not/read.safetensors")
    assert positions_of(spec, samples(dtype, label)) == found
