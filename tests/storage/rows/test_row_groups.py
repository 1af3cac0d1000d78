"""How columns lie in memory, what a row takes there, and rows read without a stream."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from storage.base.errors import SourceError
from storage.rows.row_groups import (
    TEXT_BYTES,
    Column,
    empty,
    evenly_spaced,
    first_rows,
    plain_rows,
    read_group,
    row_bytes,
)
from storage.samples import tensor_columns
from tests.storage.stream.fakes import Fake

FIELDS = {
    "float16 [2, 3]": (
        tensor_columns.tensor_field("a", np.dtype(np.float16), (2, 3), "a test"),
        np.float16,
        (2, 3),
        12,
    ),
    "uint8 [0]": (tensor_columns.tensor_field("a", np.dtype(np.uint8), (0,), "a test"), np.uint8, (0,), 0),
    "int64": (pa.field("a", pa.int64()), np.int64, (), 8),
    "float32": (pa.field("a", pa.float32()), np.float32, (), 4),
    "int16": (pa.field("a", pa.int16()), np.int16, (), 2),
    "bool": (pa.field("a", pa.bool_()), np.bool_, (), 1),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_a_column_of_its_dtype_and_shape(name: str) -> None:
    field, dtype, shape, width = FIELDS[name]
    assert Column.of(field) == Column("a", np.dtype(dtype), shape)
    assert Column.of(field).width == width


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_a_text_is_a_column_without_a_dtype(kind: pa.DataType) -> None:
    column = Column.of(pa.field("a", kind))
    assert (column.dtype, column.shape, column.width) == (None, (), TEXT_BYTES)


def test_a_row_takes_what_its_columns_take() -> None:
    assert row_bytes(Fake([3], shape=(5,))) == 8 + 4 * 5
    assert row_bytes(Fake([3], shape=(2, 3), texts=True)) == 8 + 4 * 6 + TEXT_BYTES


def test_memory_is_made_for_all_columns_but_texts() -> None:
    made = empty(Fake([3], shape=(2, 3), texts=True).columns, 7)
    assert {name: (array.dtype, array.shape) for name, array in made.items()} == {
        "sample_id": (np.int64, (7,)),
        "x": (np.float32, (7, 2, 3)),
    }


def test_evenly_spaced_groups_have_rows_and_reach_from_the_first_to_the_last() -> None:
    groups = Fake([0, 2, 2, 0, 2, 2, 2, 0])
    assert [evenly_spaced(groups, count) for count in (0, 1, 2, 3)] == [[], [1], [1, 6], [1, 4, 6]]
    assert evenly_spaced(groups, 5) == evenly_spaced(groups, 64) == [1, 2, 4, 5, 6]
    assert evenly_spaced(Fake([0, 0]), 3) == []


@pytest.mark.parametrize("texts", [False, True])
def test_a_group_is_read_whole_or_its_first_rows(texts: bool) -> None:
    groups = Fake([3, 0, 5], texts=texts)
    for count, expected in ((None, [3, 4, 5, 6, 7]), (2, [3, 4]), (0, []), (9, [3, 4, 5, 6, 7])):
        rows = read_group(groups, 2, count)
        assert rows.sample_id.tolist() == expected
        assert rows.inputs["x"].shape == (len(expected), 2)
        if texts:
            assert rows.label is not None and rows.label.tolist() == [f"row {i}" for i in expected]
    assert len(read_group(groups, 1)) == 0


def test_of_a_group_those_rows_are_read_that_a_stream_gives() -> None:
    groups = Fake([4, 4], kept=[0, 3])
    assert read_group(groups, 1).sample_id.tolist() == [5, 6, 7]
    assert read_group(groups, 1, 2).sample_id.tolist() == [5, 6]
    assert len(read_group(groups, 0)) == 0


def test_the_first_rows_are_those_of_the_first_group_with_any() -> None:
    assert first_rows(Fake([0, 0, 3, 5]), 2).sample_id.tolist() == [0, 1]
    assert first_rows(Fake([0, 0, 3, 5]), 10).sample_id.tolist() == [0, 1, 2]
    assert first_rows(Fake([4, 4], kept=[0, 3]), 10).sample_id.tolist() == [5, 6, 7]


@pytest.mark.parametrize("sizes", [[], [0, 0]])
def test_without_rows_there_are_no_first_ones(sizes: list[int]) -> None:
    with pytest.raises(SourceError, match=r"^memory has no rows\. There is at least one\.$"):
        first_rows(Fake(sizes), 1)


def test_rows_without_labels_and_targets_have_none() -> None:
    columns = {"sample_id": np.arange(3), "x": np.zeros(3), "y": np.ones(3)}
    rows = plain_rows(columns, ["y", "x"])
    assert (list(rows.inputs), rows.label, rows.targets) == (["y", "x"], None, None)
