"""Folders named key=value are columns: of Parquet and of JSON lines, by name, never inputs by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.errors import SourceError
from storage.samples.column_roles import PARTITION
from storage.samples.rows_digest import rows_digest
from storage.samples.samples import as_samples, input_names
from storage.sources import Source, make_source
from storage.sources.files.partitions import Partitions


@pytest.fixture(params=["parquet", "jsonl"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """`write(folder, ids, **columns)`: a file of rows in a folder of the source; `write.source(at, **columns)`."""

    class Write:
        root = tmp_path / "data"

        def __call__(self, folder: str, ids: list[Any], **columns: Any) -> None:
            table = pa.table({"sample_id": ids, "x": [float(n) for n in range(len(ids))], **columns})
            path = self.root / folder / f"part.{request.param}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if request.param == "parquet":
                pq.write_table(table, path)
            else:
                path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))

        def source(self, at: str = "", **columns: Any) -> Source:
            return make_source({request.param: f"{self.root}{at}", "columns": columns})

    return Write()


def read_all(source: Source) -> pa.Table:
    return pa.concat_tables([source.read(file, 0, file.rows) for file in source.files()])


def test_a_partition_gives_labels_by_the_usual_name(write: Any) -> None:
    write("label=3", [1, 2])
    write("label=10", [3])
    source = write.source()
    assert read_all(source).column("label").to_pylist() == [10, 3, 3]
    assert source.left_out() == {}
    assert read_all(write.source(inputs=["x"])).column("label").to_pylist() == [10, 3, 3]
    assert "label" not in read_all(write.source(label=False)).column_names
    [first, _] = source.files()
    plain = as_samples(pa.table({"sample_id": [3], "x": [0.0], "label": [10]}), source.columns, "a")
    assert rows_digest(source.read(first, 0, 1)) == rows_digest(plain)


def test_partitions_are_no_inputs_unless_they_are_named(write: Any) -> None:
    write("year=2024/month=01", [1])
    write("year=2025/month=12", [2])
    source = write.source()
    assert input_names(read_all(source).schema) == ["x"]
    assert source.left_out() == {"year": PARTITION, "month": PARTITION}
    named = write.source(inputs=["month", "x"], label="year")
    table = read_all(named)
    assert table.column("month").to_pylist() == [1, 12]
    assert table.column("label").to_pylist() == [2024, 2025]
    assert named.left_out() == {}


def test_an_actor_that_lists_no_files_reads_the_same(write: Any) -> None:
    write("label=3", [1, 2])
    write("label=10", [3])
    source = write.source()
    for file in source.files():
        assert write.source().read(file, 0, 1).equals(source.read(file, 0, 1))


def test_a_partition_is_text_unless_all_values_are_integers(write: Any) -> None:
    write("key=7", [1])
    write("key=a%2Fb%20c", [2])
    source = write.source(sample_id="key", inputs=["x"])
    table = pa.concat_tables([source.read(file, 0, 1).select(["sample_id"]) for file in source.files()])
    assert table.column("sample_id").to_pylist() == ["7", "a/b c"]
    assert [source.ids(file).to_pylist() for file in source.files()] == [["7"], ["a/b c"]]


def test_a_key_is_unquoted_too(write: Any) -> None:
    write("my%20label=3", [1])
    assert read_all(write.source(label="my label")).column("label").to_pylist() == [3]


def test_a_null_partition_is_a_null(write: Any) -> None:
    write("label=3", [1])
    write("label=__HIVE_DEFAULT_PARTITION__", [2])
    with pytest.raises(SourceError, match="labels in 'label' are of type int64 with 1 nulls"):
        read_all(write.source())
    assert read_all(write.source(label=False)).column_names == ["sample_id", "x"]


def test_a_partition_that_is_no_class_is_refused_as_a_column_is(write: Any) -> None:
    write("label=cat", [1])
    with pytest.raises(SourceError, match="labels in 'label' are of type string"):
        read_all(write.source())


@pytest.mark.parametrize("column", [[3, 3], ["3", "3"], [3.0, 3.0]])
def test_a_column_with_the_folders_value_is_fine_and_is_no_input_either(write: Any, column: Any) -> None:
    write("year=3", [1, 2], year=column)
    source = write.source()
    assert input_names(read_all(source).schema) == ["x"]
    assert source.left_out() == {"year": PARTITION}


@pytest.mark.parametrize("column", [[3, 4], ["3", "b"], [None, 3], [[3], [3]]])
def test_a_column_with_another_value_than_the_folder_is_refused(write: Any, column: Any) -> None:
    write("label=3", [1, 2], label=column)
    with pytest.raises(SourceError, match=r"part\.\w+' has the column 'label' with the value .*folder label=3"):
        read_all(write.source())


def test_files_of_which_only_some_lie_below_a_key_are_refused(write: Any) -> None:
    write("label=3", [1])
    write("", [2], label=[0])
    with pytest.raises(SourceError, match=r"lies below .*Folders named key=value are columns"):
        write.source().files()


def test_folders_in_another_order_are_the_same_keys(write: Any) -> None:
    write("a=1/label=2", [1])
    write("label=3/a=4", [2])
    assert read_all(write.source()).column("label").to_pylist() == [2, 3]


def test_only_folders_below_the_source_count(write: Any) -> None:
    write("label=3", [1])
    assert "label" not in read_all(write.source("/label=3")).column_names
    assert read_all(write.source("/label=*/part.*")).column("label").to_pylist() == [3]
    assert read_all(write.source("/*/*")).column("label").to_pylist() == [3]


def test_values_that_are_nearly_integers() -> None:
    def kind(*texts: str) -> str:
        names = [f"/data/k={text}/a" for text in texts]
        return str(Partitions.of("/data", names).types["k"])

    assert kind("1", "-7", "007") == "int64"
    assert kind("1", "9223372036854775808") == kind("1.0") == kind("") == kind("\u00b2") == kind("--1") == "string"
    with pytest.raises(SourceError, match="two folders of the key 'k'"):
        Partitions.of("/data", ["/data/k=1/k=2/a"])
