"""The summary columns as they follow from targets, against distributions whose entropy is known."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from storage.encodings.dense import DenseTargets
from storage.format.position_columns import ENTROPY, SUMMARY_FIELDS, TOP1, summarise


def targets(logits: list[list[float]], temperature: float = 1.0, dtype: str = "float32") -> DenseTargets:
    return DenseTargets(np.array(logits, dtype), np.full(len(logits), temperature, np.float32))


def test_entropies_that_are_known() -> None:
    half = float(np.log(0.5))
    found = summarise(
        targets([[0.0, 0.0, 0.0, 0.0], [0.0, -200.0, -200.0, -200.0], [half, half + half, half + half, -99]])
    )
    np.testing.assert_allclose(found[ENTROPY], [np.log(4), 0, 1.5 * np.log(2)], rtol=1e-6, atol=1e-30)


def test_the_temperature_is_undone() -> None:
    z_PV = np.random.default_rng(0).normal(size=(20, 9)) * 3
    p_PV = np.exp(z_PV) / np.exp(z_PV).sum(axis=1, keepdims=True)
    for temperature in (0.5, 1.0, 4.0):
        soft_PV = z_PV / temperature
        found = summarise(targets((soft_PV - soft_PV.max(axis=1, keepdims=True)).tolist(), temperature))
        np.testing.assert_allclose(found[ENTROPY], -(p_PV * np.log(p_PV)).sum(axis=1), rtol=1e-5)
        np.testing.assert_array_equal(found[TOP1], z_PV.argmax(axis=1))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_of_classes_that_are_alike_the_lowest_is_the_top_one(dtype: str) -> None:
    assert summarise(targets([[-1, 0, 0], [0, 0, 0], [-2, -1, 0]], dtype=dtype))[TOP1].tolist() == [1, 0, 2]


def test_the_columns_are_of_the_fields_types_and_say_what_they_mean() -> None:
    found = summarise(targets([[0.0, -1.0]]))
    assert list(found) == [field.name for field in SUMMARY_FIELDS] == ["soft_entropy", "soft_top1"]
    for field in SUMMARY_FIELDS:
        assert field.type == pa.from_numpy_dtype(found[field.name].dtype)
        assert not field.nullable
        assert list(field.metadata) == [b"meaning"]
