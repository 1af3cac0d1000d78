"""Every teacher backend: shapes, the same seed the same answer, batch size within tolerance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from storage.models import ModelSpec
from storage.samples import Columns, as_samples
from teacher_infer.teachers import TEACHERS


def make(name: str, dtype: str = "float32", seed: int = 0, **arguments: Any) -> Any:
    return TEACHERS[name](ModelSpec("stillhouse_toys:linear", arguments), dtype=dtype, seed=seed, device="cpu")


X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)


@pytest.mark.parametrize("name", TEACHERS)
def test_logits_have_a_row_a_sample_and_a_column_a_class(toys: Path, name: str) -> None:
    assert make(name, classes=5).logits([X]).shape == (32, 5)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_same_seed_gives_the_same_answer(toys: Path, name: str) -> None:
    first, again, other = make(name).logits([X]), make(name).logits([X]), make(name, seed=1).logits([X])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", TEACHERS)
def test_batch_size_changes_the_answer_within_rounding_only(toys: Path, name: str) -> None:
    teacher = make(name)
    one_by_one = torch.cat([teacher.logits([X[i : i + 1]]) for i in range(len(X))])
    torch.testing.assert_close(one_by_one, teacher.logits([X]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_dtype_is_the_recipes(toys: Path, name: str, dtype: str) -> None:
    class Probe(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.dtype == getattr(torch, dtype)
            return x

    teacher = make(name, dtype)
    assert {p.dtype for p in teacher._model.parameters()} == {getattr(torch, dtype)}
    teacher._model = Probe()
    teacher.logits([X])


@pytest.mark.parametrize("name", TEACHERS)
def test_classes_are_told_without_running(toys: Path, tmp_path: Path, name: str) -> None:
    x = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 4)
    example = as_samples(pa.table({"sample_id": pa.array(range(32)), "x": x}), Columns(), "toys").slice(0, 1)
    calls = tmp_path / "calls"
    teacher = make(name, classes=7, calls=str(calls))
    assert teacher.classes(example) == 7
    assert not calls.exists()
    assert teacher.logits([X]).shape == (32, 7)
