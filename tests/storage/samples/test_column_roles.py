"""Columns that programs write for themselves are no inputs, unless they are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.errors import SourceError
from storage.samples.column_roles import PARTITION, Columns, Roles
from storage.samples.described_columns import columns_line, described_columns
from storage.samples.rows_digest import rows_digest
from storage.samples.samples import input_names
from storage.sources import Source, make_source

FRAME = pd.DataFrame({"sample_id": range(8), "x": np.arange(8, dtype=np.float32), "label": np.arange(8) % 3})

WRITERS = [
    *("__index_level_0__", "__index_level_1__", "__null_dask_index__", "__filename", "__fragment_index", "__x"),
    *("_corrupt_record", "_rescued_data", "_metadata", "_change_type", "_commit_version", "_hoodie_record_key"),
    *("Unnamed: 0", "Unnamed: 0.1", "Unnamed: 12"),
]


@pytest.fixture(params=["parquet", "function"])
def source_of(request: pytest.FixtureRequest, tmp_path: Path, module: Callable[[str], str]) -> Callable[..., Source]:
    """`source_of(frame, **columns)`: a source of a data frame, as Parquet and from a function."""

    def make(frame: pd.DataFrame, **columns: Any) -> Source:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        frame.to_parquet(path)
        if request.param == "parquet":
            return make_source({"parquet": str(path), "columns": columns})
        text = (
            "import pandas as pd, pyarrow as pa\n"
            f"def rows(): return pa.Table.from_pandas(pd.read_parquet({str(path)!r}))\n"
        )
        return make_source({"function": f"{module(text)}:rows", "columns": columns})

    return make


def read_all(source: Source) -> pa.Table:
    return pa.concat_tables([source.read(file, 0, file.rows) for file in source.files()])


@pytest.mark.parametrize("name", WRITERS)
def test_a_writers_column_is_left_out(name: str) -> None:
    roles = Roles.of(["sample_id", name, "x", "label"], Columns())
    assert roles.inputs == ("x",)
    assert list(roles.left_out) == [name]


@pytest.mark.parametrize("name", ["x", "_x", "index", "level_0", "unnamed", "metadata", "_c0", "x__", "Unnamed"])
def test_other_columns_are_inputs(name: str) -> None:
    roles = Roles.of(["sample_id", name], Columns())
    assert (roles.inputs, roles.left_out) == ((name,), {})


def test_a_named_column_is_used_and_nothing_is_left_out() -> None:
    columns = Columns(inputs=("__index_level_0__",), label="_metadata")
    roles = Roles.of(["sample_id", "x", "__index_level_0__", "_metadata"], columns, ["x"], ["x"])
    assert (roles.inputs, roles.label, roles.left_out) == (("__index_level_0__",), "_metadata", {})


def test_the_index_of_a_filtered_frame_is_no_input(source_of: Callable[..., Source]) -> None:
    source = source_of(FRAME[FRAME.label != 1])
    table = read_all(source)
    assert table.schema.names == ["sample_id", "x", "label"]
    assert source.left_out() == {"__index_level_0__": "the index of a pandas data frame"}
    assert rows_digest(table) == rows_digest(read_all(source_of(FRAME[FRAME.label != 1].reset_index(drop=True))))


def test_a_named_index_is_no_input(source_of: Callable[..., Source]) -> None:
    frame = FRAME.assign(row=range(8), part=1).set_index(["row", "part"])
    assert input_names(read_all(source_of(frame)).schema) == ["x"]
    assert list(source_of(frame).left_out()) == ["row", "part"]
    assert input_names(read_all(source_of(frame, inputs=["row", "x"])).schema) == ["row", "x"]


@pytest.mark.parametrize("index", [["sample_id"], ["label"], ["sample_id", "label"]])
def test_an_index_that_is_the_id_or_the_label_serves_as_that(source_of: Callable[..., Source], index: Any) -> None:
    source = source_of(FRAME.set_index(index))
    table = read_all(source)
    assert table.schema.names == ["sample_id", "x", "label"]
    assert table.column("label").to_pylist() == FRAME.label.tolist()
    assert source.left_out() == {}


def test_an_index_that_is_a_range_has_no_column_and_serves_all_the_same(source_of: Callable[..., Source]) -> None:
    frame = FRAME.drop(columns="sample_id")
    frame.index = pd.RangeIndex(100, 84, -2, name="sample_id")
    source = source_of(frame)
    [file] = source.files()
    assert source.read(file, 3, 6).column("sample_id").to_pylist() == [94, 92, 90]
    assert source.ids(file).to_pylist() == list(range(100, 84, -2))
    frame.index = pd.RangeIndex(8, name="row")
    assert list(source_of(frame.assign(sample_id=range(8))).left_out()) == ["row"]
    assert input_names(read_all(source_of(frame.assign(sample_id=range(8)), inputs=["row"])).schema) == ["row"]


def test_a_range_of_other_rows_counts_for_nothing(tmp_path: Path) -> None:
    frame = FRAME.drop(columns="sample_id")
    frame.index = pd.RangeIndex(8, name="sample_id")
    pq.write_table(pa.Table.from_pandas(frame).slice(2, 3), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="has no column 'sample_id'"):
        read_all(make_source({"parquet": str(tmp_path)}))


def test_a_source_of_nothing_but_an_index_says_what_was_left_out(source_of: Callable[..., Source]) -> None:
    source = source_of(FRAME[["sample_id", "label"]][FRAME.label != 1])
    with pytest.raises(
        SourceError, match=r"no input column\..*'__index_level_0__' \(the index of a pandas data frame\)"
    ):
        read_all(source)


def test_files_with_and_without_an_index_are_one_source(tmp_path: Path) -> None:
    FRAME[:4].to_parquet(tmp_path / "a.parquet")
    FRAME[4:].to_parquet(tmp_path / "b.parquet")
    source = make_source({"parquet": str(tmp_path)})
    assert read_all(source).column("x").to_pylist() == FRAME.x.tolist()
    FRAME[FRAME.label != 0].to_parquet(tmp_path / "b.parquet")
    assert list(source.left_out()) == ["__index_level_0__"]


def test_lines_leave_out_the_same_columns(tmp_path: Path) -> None:
    rows = [{"sample_id": n, "__index_level_0__": n, "x": n, "_metadata": {"file": "a"}} for n in range(4)]
    rows[2]["_corrupt_record"] = None  # Spark writes a column only where it has a value
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = make_source({"jsonl": str(tmp_path)})
    assert input_names(read_all(source).schema) == ["x"]
    assert list(source.left_out()) == ["__index_level_0__", "_metadata"]


def test_a_left_out_column_may_be_of_any_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sample_id": [1, 2], "x": [1, 2], "__file": ["a", None]}), tmp_path / "a.parquet")
    assert read_all(make_source({"parquet": str(tmp_path)})).schema.names == ["sample_id", "x"]


def test_pandas_metadata_that_are_broken_count_for_nothing(tmp_path: Path) -> None:
    for number, text in enumerate([b"{", b"[]", b'{"index_columns": null}', b'{"index_columns": [{"kind": "range"}]}']):
        table = pa.table({"sample_id": [1], "x": [1]}).replace_schema_metadata({b"pandas": text})
        pq.write_table(table, tmp_path / f"{number}.parquet")
        source = make_source({"parquet": str(tmp_path / f"{number}.parquet")})
        assert read_all(source).schema.names == ["sample_id", "x"]


def test_columns_are_described_with_what_was_left_out() -> None:
    raw = pa.table({"key": [1], "x": [[1.0, 2.0]], "y": [True], "digit": [[1, 2]], "year": [2024]})
    columns = Columns(sample_id="key", label="digit")
    from storage.samples.samples import as_samples

    samples = as_samples(raw, columns, "a", partitions=["year"])
    facts = described_columns(samples.schema, columns, {"year": PARTITION})
    assert facts == {
        "inputs": {"x": {"dtype": "float64", "shape": [2]}, "y": {"dtype": "bool", "shape": []}},
        "label": {"column": "digit", "dtype": "int32", "shape": [2]},
        "sample_id": {"column": "key", "dtype": "int64", "shape": []},
        "left_out": [{"column": "year", "reason": PARTITION}],
    }
    assert columns_line(facts) == (
        "inputs: x float64[2], y bool; label: digit int32[2]; sample_id: key int64; left out, unless "
        "source.columns.inputs names them: 'year' (a partition: folders named key=value)"
    )
