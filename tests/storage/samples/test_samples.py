"""Raw rows become samples, or a sentence about the column that was wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.base.errors import SourceError
from storage.format.position_columns import SUMMARY_FIELDS
from storage.samples import tensor_columns
from storage.samples.columns import Columns
from storage.samples.inputs_digest import INPUTS_XXH3_FIELD
from storage.samples.samples import as_samples, input_names, kept_columns


def raw(**columns: Any) -> pa.Table:
    made = {"sample_id": [3, 1, 2], "x": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "n": [7, 8, 9], "label": [0, 1, 0]}
    made.update(columns)
    return pa.table({name: column for name, column in made.items() if column is not None})


def made(table: pa.Table, **columns: Any) -> pa.Table:
    return as_samples(table, Columns(**columns), "data.parquet")


def test_a_table_becomes_ids_inputs_and_labels_in_this_order() -> None:
    samples = made(raw().select(["label", "n", "sample_id", "x"]))
    assert samples.schema.names == ["sample_id", "n", "x", "label"]
    assert input_names(samples.schema) == ["n", "x"]
    assert samples.column("sample_id").to_pylist() == [3, 1, 2]
    assert samples.column("label").to_pylist() == [0, 1, 0]
    x = tensor_columns.unpack(samples.column("x"), samples.schema.field("x"))
    np.testing.assert_array_equal(x, [[1, 2], [3, 4], [5, 6]])


def test_inputs_stand_in_the_order_that_was_asked_for() -> None:
    assert input_names(made(raw(), inputs=("x", "n")).schema) == ["x", "n"]
    assert input_names(made(raw(), inputs=("n", "x")).schema) == ["n", "x"]


def test_only_the_inputs_that_were_asked_for_are_taken() -> None:
    assert made(raw(text=["a", "b", "c"]), inputs=("n",)).schema.names == ["sample_id", "n", "label"]


def test_columns_by_other_names_get_the_stores_names() -> None:
    table = raw().rename_columns(["key", "x", "n", "digit"])
    samples = made(table, sample_id="key", label="digit")
    assert samples.schema.names == ["sample_id", "x", "n", "label"]
    assert samples.column("sample_id").to_pylist() == [3, 1, 2]
    assert samples.column("label").to_pylist() == [0, 1, 0]


@pytest.mark.parametrize("inputs", [None, ("x", "n")])
def test_label_false_leaves_labels_out(inputs: tuple[str, ...] | None) -> None:
    assert made(raw(), label=False, inputs=inputs).schema.names == ["sample_id", "x", "n"]


def test_label_false_leaves_out_labels_that_could_not_be_used() -> None:
    assert "label" not in made(raw(label=[0.5, None, 1.0]), label=False).schema.names


def test_without_a_label_column_there_are_no_labels() -> None:
    assert made(raw(label=None)).schema.names == ["sample_id", "x", "n"]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64()])
def test_integer_ids_and_labels_of_any_width_become_64_bits(kind: pa.DataType) -> None:
    samples = made(raw(sample_id=pa.array([3, 1, 2], kind), label=pa.array([0, 1, 0], kind)))
    assert samples.schema.field("sample_id") == pa.field("sample_id", pa.int64(), nullable=False)
    assert samples.schema.field("label") == pa.field("label", pa.int64(), nullable=False)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_text_ids_stay_text(kind: pa.DataType) -> None:
    samples = made(raw(sample_id=pa.array(["b", "a", "é"], kind)))
    assert samples.schema.field("sample_id") == pa.field("sample_id", pa.string(), nullable=False)
    assert samples.column("sample_id").to_pylist() == ["b", "a", "é"]


@pytest.mark.parametrize(
    "columns, found",
    [
        (
            {"sample_id": "sampel_id"},
            r"no column 'sampel_id' \(asked for as source\.columns\.sample_id\)\..*'sample_id'",
        ),
        ({"inputs": ("x", "nn")}, r"no column 'nn' \(asked for as source\.columns\.inputs\)\..*'n'"),
        ({"label": "lable"}, r"no column 'lable' \(asked for as source\.columns\.label\)\..*'label'"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest_one(columns: dict[str, Any], found: str) -> None:
    with pytest.raises(SourceError, match=rf"^data\.parquet has {found}\?$") as caught:
        made(raw(), **columns)
    assert "Its columns are: sample_id, x, n, label." in str(caught.value)


@pytest.mark.parametrize(
    "ids", [[3, None, 2], ["a", None, "b"], [0.5, 1.5, 2.5], [[1], [2], [3]], pa.nulls(3), [True, False, True]]
)
def test_ids_that_are_no_ids_are_refused(ids: Any) -> None:
    with pytest.raises(SourceError, match=r"^data\.parquet: the sample ids in 'sample_id' .*Ids are integers or text"):
        made(raw(sample_id=ids))


@pytest.mark.parametrize("labels", [[0, None, 1], [0.0, 1.0, 0.0], ["a", "b", "c"], pa.nulls(3)])
def test_labels_that_are_no_classes_are_refused_with_the_way_out(labels: Any) -> None:
    with pytest.raises(SourceError, match=r"^data\.parquet: the labels in 'label' .*source\.columns\.label=false"):
        made(raw(label=labels))


def label_table(kind: str, values: Any) -> pa.Table:
    """Three rows whose labels are lists, of one of the ways that lists come in."""
    array: Any = pa.array(values)
    if kind == "fixed":
        array = pa.array(values, pa.list_(array.type.value_type, len(values[0])))
    elif kind == "tensor":
        packed = np.array(values, np.int16)
        field = tensor_columns.tensor_field("label", packed.dtype, packed.shape[1:], "label")
        schema = pa.schema([("sample_id", pa.int64()), ("x", pa.float64()), field])
        return pa.table([pa.array([3, 1, 2]), pa.array([1.0, 2.0, 3.0]), tensor_columns.pack(packed)], schema=schema)
    return pa.table({"sample_id": [3, 1, 2], "x": [1.0, 2.0, 3.0], "label": array})


@pytest.mark.parametrize("kind", ["list", "fixed", "tensor"])
def test_labels_of_positions_are_a_tensor_of_int32(kind: str) -> None:
    values = [[4, 5, -100], [5, 6, 7], [0, -100, -100]]
    samples = made(label_table(kind, values))
    assert samples.schema.names == ["sample_id", "x", "label"]
    field = samples.schema.field("label")
    assert tensor_columns.form(field) == (np.dtype(np.int32), (3,))
    assert tensor_columns.unpack(samples.column("label"), field).tolist() == values
    assert made(samples).equals(samples)
    assert input_names(samples.schema) == ["x"]
    assert kept_columns(samples.schema, "referenced").names == ["sample_id", "label"]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([[1, 2], [3], [4, 5]], "lists of unequal length"),
        ([[1, None], [3, 4], [4, 5]], "nulls inside its lists"),
        ([[1, 2], None, [4, 5]], "1 nulls"),
        ([[1.0, 2.0], [3.0, 4.0], [4.0, 5.0]], "They are float64"),
        ([["a"], ["b"], ["c"]], "has the type list"),
    ],
)
def test_lists_that_are_no_labels_are_refused_with_the_way_out(values: Any, found: str) -> None:
    with pytest.raises(SourceError, match=rf"the labels in 'label' .*{found}.*source\.columns\.label=false"):
        made(label_table("list", values))


def test_labels_of_positions_fit_int32() -> None:
    with pytest.raises(SourceError, match=r"the labels in 'label' reach from 1 to 2147483648\..*fit int32"):
        made(label_table("list", [[1], [2], [1 << 31]]))


@pytest.mark.parametrize("column", ["sample_id", "label"])
def test_an_unsigned_number_that_64_bits_with_a_sign_do_not_hold_is_refused(column: str) -> None:
    with pytest.raises(SourceError, match=f"'{column}'"):
        made(raw(**{column: pa.array([2**63, 1, 2], pa.uint64())}))


@pytest.mark.parametrize("name", ["soft_logits", "soft_", "soft_entropy", "sample_id", "label", "inputs_xxh3"])
def test_an_input_with_one_of_the_stores_own_names_is_refused(name: str) -> None:
    table = pa.table({"key": [1], name: [2]})
    with pytest.raises(SourceError, match=rf"an input is named '{name}'\..*Rename the column"):
        made(table, sample_id="key", inputs=(name,))


def test_a_table_without_inputs_is_refused() -> None:
    with pytest.raises(SourceError, match="has no input column"):
        made(raw(x=None, n=None))


def test_an_input_that_is_no_tensor_is_named() -> None:
    with pytest.raises(SourceError, match=r"Column 'text' has the type string"):
        made(raw(text=["a", "b", "c"]))


def test_samples_made_into_samples_again_stay_the_same() -> None:
    samples = made(raw())
    assert made(samples).equals(samples, check_metadata=True)


def test_what_a_shard_adds_to_samples_is_no_input() -> None:
    samples = made(raw())
    added = pa.schema([*samples.schema, INPUTS_XXH3_FIELD, *SUMMARY_FIELDS, pa.field("soft_logits", pa.binary(4))])
    assert input_names(added) == ["x", "n"]


def test_a_shard_keeps_all_columns_or_all_but_the_inputs() -> None:
    schema = made(raw()).schema
    assert kept_columns(schema, "stored").equals(schema)
    assert kept_columns(schema, "referenced").names == ["sample_id", "label"]
    assert kept_columns(made(raw(), label=False).schema, "referenced").names == ["sample_id"]
