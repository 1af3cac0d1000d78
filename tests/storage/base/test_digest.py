"""Digests name values, not layouts: the golden bytes, and what may and may not change them."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.base.digest import canonical_json, range_digest, sha256_file, sha256_of
from storage.samples import tensor_columns
from storage.samples.rows_digest import rows_digest
from storage.samples.samples import Columns, as_samples


def test_canonical_json_has_these_bytes() -> None:
    value = {"b": [1, 2.5, -0.0, 1e-7], "a": {"é": None, "z": True, "A": '\n"'}}
    golden = b'{"a":{"A":"\\n\\"","z":true,"\xc3\xa9":null},"b":[1,2.5,-0.0,1e-07]}'
    assert canonical_json(value) == golden
    assert sha256_of(value) == hashlib.sha256(golden).hexdigest()


def test_the_order_in_which_keys_were_set_does_not_count() -> None:
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_json_without_a_standard_form_is_refused(odd: float) -> None:
    with pytest.raises(ValueError):
        canonical_json({"lr": [odd]})


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_the_digest_of_a_file_does_not_depend_on_the_chunks_it_is_read_in(chunk: int) -> None:
    assert sha256_file(io.BytesIO(b"0123456789"), chunk) == hashlib.sha256(b"0123456789").hexdigest()


def test_range_digest_is_xxh3_128() -> None:
    assert range_digest(b"") == "99aa06d3014798d86001c324468d497f"
    assert range_digest(memoryview(b"abc")) == range_digest(b"abc") == "06b05ab6733a618578af5f94892f3950"


VALUES = np.arange(24, dtype=np.float32).reshape(6, 4) / 8


def lists(values: np.ndarray[Any, Any], kind: str) -> tuple[pa.Field, pa.Array]:
    flat, length = pa.array(values.ravel()), values.shape[1]
    if kind == "fixed_size_list":
        column = pa.FixedSizeListArray.from_arrays(flat, length)
    elif kind == "fixed_size_binary":
        field = tensor_columns.tensor_field("x", values.dtype, values.shape[1:], "anything")
        return field, tensor_columns.pack(values)
    else:
        make = pa.list_ if kind == "list" else pa.large_list
        column = pa.array(values.tolist(), make(flat.type))
    return pa.field("x", column.type), column


def samples(kind: str = "list", values: np.ndarray[Any, Any] = VALUES, name: str = "x", ids: Any = None) -> pa.Table:
    field, column = lists(values, kind)
    ids = pa.array(range(len(values)) if ids is None else ids)
    schema = pa.schema([("sample_id", ids.type), field.with_name(name)])
    return as_samples(pa.table([ids, column], schema=schema), Columns(), "a test")


def test_rows_digest_of_these_rows_never_changes() -> None:
    assert rows_digest(samples()) == "42dc185d8186325f7de54d3fdf20d7b1a64862029a112926cb38246788b0dd81"
    assert (
        rows_digest(pa.table({"sample_id": ["ab", "c"]}))
        == "66b6f0340b53d532963d221f4637b1b4ef589250efeb1f4f55defefd7010ccb1"
    )


@pytest.mark.parametrize("kind", ["large_list", "fixed_size_list", "fixed_size_binary"])
def test_the_same_values_in_another_layout_have_the_same_digest(kind: str) -> None:
    assert rows_digest(samples(kind)) == rows_digest(samples("list"))


@pytest.mark.parametrize("kind", ["list", "fixed_size_list", "fixed_size_binary"])
@pytest.mark.parametrize("cuts", [[1], [2, 2], [0, 3, 5], [1, 2, 3, 4, 5]])
def test_the_same_values_in_other_chunks_have_the_same_digest(kind: str, cuts: list[int]) -> None:
    whole = samples(kind)
    parts = [whole.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, 6], strict=True)]
    assert rows_digest(pa.concat_tables(parts)) == rows_digest(whole)


def test_rows_cut_out_of_more_rows_have_the_digest_of_those_rows_alone() -> None:
    assert rows_digest(samples().slice(2, 3)) == rows_digest(samples(values=VALUES[2:5], ids=[2, 3, 4]))


def test_text_of_either_arrow_type_has_the_same_digest() -> None:
    small, large = (pa.table({"s": pa.array(["a", "é"], kind)}) for kind in (pa.string(), pa.large_string()))
    assert rows_digest(small) == rows_digest(large)


def test_a_changed_value_dtype_shape_name_order_or_row_changes_the_digest() -> None:
    changed = VALUES.copy()
    changed[3, 2] = np.nextafter(changed[3, 2], np.float32(9))
    tables = {
        "as it was": samples(),
        "one value": samples(values=changed),
        "the sign of a zero": samples(values=np.where(VALUES == 0, np.float32(-0.0), VALUES)),
        "dtype": samples(values=VALUES.astype(np.float64)),
        "same bytes, another dtype": samples(values=VALUES.view(np.int32)),
        "shape": samples(values=VALUES.reshape(3, 8), ids=[0, 1, 2]),
        "column name": samples(name="y"),
        "row order": samples(values=VALUES[::-1].copy()),
        "a row less": samples(values=VALUES[:5]),
        "an id": samples(ids=[0, 1, 2, 3, 4, 6]),
        "ids as text": samples(ids=["0", "1", "2", "3", "4", "5"]),
        "column order": samples().select(["x", "sample_id"]),
        "a column less": samples().select(["x"]),
    }
    digests = {what: rows_digest(table) for what, table in tables.items()}
    assert len(set(digests.values())) == len(digests), digests


def test_the_shape_of_a_row_counts_even_when_the_bytes_are_the_same() -> None:
    flat = tensor_columns.tensor_field("x", np.dtype("float32"), (4,), "")
    square = tensor_columns.tensor_field("x", np.dtype("float32"), (2, 2), "")
    column = tensor_columns.pack(VALUES)
    assert rows_digest(pa.table([column], schema=pa.schema([flat]))) != rows_digest(
        pa.table([column], schema=pa.schema([square]))
    )


def test_text_is_told_apart_by_where_it_is_cut() -> None:
    digests = {rows_digest(pa.table({"s": texts})) for texts in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""])}
    assert len(digests) == 4


def test_no_rows_at_all_have_a_digest() -> None:
    assert rows_digest(samples().slice(0, 0)) != rows_digest(samples().slice(0, 1))


def test_lists_that_were_not_made_tensors_are_not_named_by_their_address() -> None:
    """Either the same digest every time, or a refusal; never the addresses of the lists in memory."""
    first, second = (pa.table({"x": pa.array([[1.0, 2.0], [3.0, 4.0]])}) for _ in range(2))
    try:
        assert rows_digest(first) == rows_digest(second)
    except TypeError:
        return
