"""The rows of a source, for learning from labels alone: the same rows and order as a cache of them has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.errors import SourceError, VerificationError
from storage.objectstore.folder import Folder
from storage.rows.cache_rows import CacheRows
from storage.rows.row_groups import read_group
from storage.rows.source_rows import SourceRows
from storage.sources import decoding, make_source
from storage.stream.scan import scan
from storage.stream.stream import Stream
from tests.storage.stream.fakes import Make, batches, check_rows, ids, values

N = 23


@pytest.fixture
def source_rows(tmp_path: Path, make_samples: Make) -> SourceRows:
    """The rows of a source of two files."""
    (tmp_path / "data").mkdir()
    pq.write_table(make_samples(14), tmp_path / "data" / "a.parquet", row_group_size=5)
    pq.write_table(make_samples(9, 14), tmp_path / "data" / "b.parquet", row_group_size=2)
    return SourceRows(make_source({"parquet": str(tmp_path / "data")}))


def test_a_source_and_a_cache_of_its_rows_give_the_same_values(
    local: Folder, make_cache: Make, source_rows: SourceRows, teacher: Make
) -> None:
    """In the same row groups, also in the same order."""
    from_cache = CacheRows(make_cache(local, (14, 9)))
    assert source_rows.rows.tolist() == from_cache.rows.tolist() == [14, 9]
    for lanes, window in ((1, N), (3, 4)):
        settings = {"batch_size": 6, "seed": 3, "lanes": lanes, "window": window}
        for labels, targets in zip(
            batches(Stream(source_rows, **settings), 9), batches(Stream(from_cache, **settings), 9), strict=True
        ):
            check_rows(targets.rows, teacher)
            assert labels.targets is None
            assert values(labels.rows) == values(targets.rows)[: len(values(labels.rows))]


def test_a_large_file_is_read_in_groups(source_rows: SourceRows, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(SourceRows, "GROUP_ROWS", 4)
    parts = SourceRows(make_source({"parquet": str(tmp_path / "data")}))
    assert parts.rows.tolist() == parts.sizes.tolist() == [4, 4, 4, 2, 4, 4, 1]
    assert sorted(ids(Stream(parts, batch_size=N, seed=0), 1)) == list(range(N))
    assert [len(rows) for rows in scan(parts, 10)] == [10, 10, 3]
    assert parts.name_of(3) == f"rows 12 to 14 of {tmp_path}/data/a.parquet"
    assert parts.name_of(6) == f"rows 8 to 9 of {tmp_path}/data/b.parquet"


def test_pieces_leave_digests_and_rows_as_they_are(
    source_rows: SourceRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "WHOLE_BYTES", 0)
    monkeypatch.setattr(decoding, "PIECE_BYTES", 100)
    again = SourceRows(make_source({"parquet": str(tmp_path / "data")}))
    assert again.digest == source_rows.digest
    [found], [expected] = ([values(rows) for rows in scan(one, N)] for one in (again, source_rows))
    assert found == expected


def test_the_digest_of_a_source_is_that_of_its_values(tmp_path: Path, make_samples: Make) -> None:
    digests: list[str] = []
    for number, (first, group) in enumerate([(0, 5), (0, 3), (1, 5)]):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(make_samples(10, first), path, row_group_size=group)
        digests.append(SourceRows(make_source({"parquet": str(path)})).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_source_without_rows_is_refused(tmp_path: Path, make_samples: Make) -> None:
    pq.write_table(make_samples(1).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"^The source .*a\.parquet is empty\. There is at least one sample\.$"):
        SourceRows(make_source({"parquet": str(tmp_path / "a.parquet")}))


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, dtype in (("a", pa.float32()), ("b", pa.int32())):
        table = pa.table({"sample_id": pa.array([ord(name)]), "x": pa.array([1], dtype)})
        pq.write_table(table, tmp_path / "data" / f"{name}.parquet")
    with pytest.raises(SourceError) as caught:
        SourceRows(make_source({"parquet": str(tmp_path / "data")}))
    assert caught.value.args == (
        f"{tmp_path}/data/b.parquet has the columns sample_id int64, x int32.",
        "The rows before them have sample_id int64, x float.",
        "All rows of a source have the same columns, types and shapes.",
    )


def test_ids_that_come_twice_are_refused(tmp_path: Path, make_samples: Make) -> None:
    (tmp_path / "data").mkdir()
    for name, first in (("a", 0), ("b", 3)):
        pq.write_table(make_samples(4, first), tmp_path / "data" / f"{name}.parquet")
    with pytest.raises(SourceError, match=r"1 sample ids appear more than once: '3' \(2 times\)"):
        SourceRows(make_source({"parquet": str(tmp_path / "data")}))


@pytest.mark.parametrize("lanes, window", [(1, 18), (4, 3)])
def test_text_ids_stay_with_their_rows(monkeypatch: pytest.MonkeyPatch, module: Make, lanes: int, window: int) -> None:
    monkeypatch.setattr(SourceRows, "GROUP_ROWS", 4)
    source = make_source(
        {
            "function": module(
                "import pyarrow as pa\n"
                "def rows():\n"
                "    for first in (0, 9):\n"
                "        ids = range(first, first + 9)\n"
                "        yield pa.table({'sample_id': [f's{i}' for i in ids], 'x': [float(i) for i in ids]})\n"
            )
            + ":rows"
        }
    )
    seen: list[str] = []
    for batch in batches(Stream(SourceRows(source), batch_size=4, seed=0, lanes=lanes, window=window), 9):
        assert [f"s{int(x)}" for x in batch.inputs["x"]] == batch.sample_id.tolist()
        assert batch.label is None
        seen += batch.sample_id.tolist()
    assert sorted(seen[:18]) == sorted(f"s{i}" for i in range(18))


def test_the_rows_of_a_group_are_in_memory_of_their_own(source_rows: SourceRows) -> None:
    """Also where Arrow would give a view that may not be written to."""
    rows = read_group(source_rows, 0)
    for array in (rows.sample_id, *rows.inputs.values(), rows.label):
        assert array is not None
        array[...] = 99
    assert read_group(source_rows, 0).sample_id.tolist() == list(range(14))


def test_a_source_that_broke_has_changed(source_rows: SourceRows, tmp_path: Path) -> None:
    (tmp_path / "data" / "b.parquet").unlink()
    with pytest.raises(VerificationError, match=r"^rows 0 to 9 of .*b\.parquet could be read at the start, and"):
        batches(Stream(source_rows, batch_size=N), 1)


@pytest.mark.parametrize(
    "change", ["a value", "a label", "an id", "fewer rows", "more rows", "another type", "garbage"]
)
def test_rows_that_changed_after_they_were_digested_are_not_given(
    source_rows: SourceRows, tmp_path: Path, make_samples: Make, change: str
) -> None:
    path, table = tmp_path / "data" / "b.parquet", make_samples(9, 14)
    size = path.stat().st_size
    assert len(read_group(source_rows, 1)) == 9
    for column, name in (("x", "a value"), ("label", "a label"), ("sample_id", "an id")):
        if change == name:
            values = table.column(column).to_pylist()
            at = table.schema.get_field_index(column)
            changed = pa.array([values[1], values[0], *values[2:]], table.schema.types[at])
            table = table.set_column(at, table.schema.field(at), changed)
    if change == "another type":
        table = table.set_column(0, "sample_id", table.column(0).cast(pa.int32()).cast(pa.string()))
    rows = {"fewer rows": 8, "more rows": 10}.get(change, 9)
    pq.write_table(make_samples(10, 14) if rows == 10 else table.slice(0, rows), path, row_group_size=2)
    if change == "garbage":
        path.write_bytes(bytes(size))
    if change == "more rows":
        # Those that were there at the start are still what they were.
        assert len(read_group(source_rows, 1)) == 9
        return
    with pytest.raises(VerificationError, match=r"^rows 0 to 9 of .*b\.parquet .*Leave a source alone") as caught:
        read_group(source_rows, 1)
    assert caught.value.exit_code == 3
    assert len(read_group(source_rows, 0)) == 14
