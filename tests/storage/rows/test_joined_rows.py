"""Inputs by reference: the batches are those of stored ones, wherever rows lie by now, and no other input is unseen."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.errors import RecipeError, SourceError, UsageError, VerificationError
from storage.cache.cache import Cache
from storage.cache.seal import seal
from storage.objectstore.folder import Folder
from storage.rows import joined_rows as joining
from storage.rows.cache_rows import CacheRows
from storage.rows.joined_rows import JoinedRows
from storage.rows.reading import Reading
from storage.rows.selected_rows import Selected
from storage.samples.samples import SourceFile
from storage.sources import make_source
from storage.sources.parquet import ParquetSource
from storage.stream.scan import scan
from storage.stream.stream import Stream
from tests.storage.stream.caches import put_cache, put_rows, raw_rows, section_bytes, watch, write_source
from tests.storage.stream.fakes import Make, batches, values

SHARDS = [range(11), range(11, 14), range(14, 23)]
N = 23
FILES = {"a": range(14), "b": range(14, 23)}


@pytest.fixture
def cache(local: Folder) -> Cache:
    return put_cache(local, SHARDS, "referenced")


def source_of(folder: Path, files: dict[str, Sequence[int]] = FILES, **settings: Any) -> ParquetSource:
    return make_source({"parquet": write_source(folder / "source", files, **settings)})  # type: ignore[return-value]


def all_values(groups: Any) -> list[Any]:
    return [values(rows) for rows in scan(groups, 5)]


def wrong(groups: Any) -> str:
    """What reading all rows is refused with."""
    with pytest.raises(VerificationError) as refused:
        list(scan(groups, 5, Reading(threads=1)))
    return str(refused.value)


@dataclasses.dataclass(frozen=True)
class Watched(ParquetSource):
    """A source that notes what is read of it."""

    reads: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)

    def read(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        self.reads.append((Path(file.name).stem, start, stop))
        return super().read(file, start, stop)


# The same as with stored inputs


@pytest.mark.parametrize("texts", [False, True], ids=["ints", "texts"])
@pytest.mark.parametrize("order", [{}, {"lanes": 2, "window": 5}], ids=str)
def test_batches_are_those_of_a_cache_that_holds_its_inputs(
    local: Folder, tmp_path: Path, texts: bool, order: dict[str, Any]
) -> None:
    stored = put_cache(local, SHARDS, "stored", texts=texts)
    joined = JoinedRows(
        CacheRows(put_cache(local, SHARDS, "referenced", texts=texts)), source_of(tmp_path, texts=texts)
    )
    for rank, world in ((0, 1), (0, 2), (1, 2), (2, 3)):
        streams = [
            Stream(groups, batch_size=4, seed=3, rank=rank, world=world, **order)
            for groups in (CacheRows(stored), joined)
        ]
        one, two = (batches(stream, 14) for stream in streams)
        assert [values(batch.rows) for batch in one] == [values(batch.rows) for batch in two]
        assert [list(batch.inputs) for batch in two] == [["x", "n"]] * 14
        for stream in streams:
            stream.close()


def test_its_order_is_that_of_the_cache_alone(cache: Cache, tmp_path: Path) -> None:
    alone, joined = CacheRows(cache), JoinedRows(CacheRows(cache), source_of(tmp_path))
    assert (joined.rows.tolist(), joined.digest, joined.where) == (alone.rows.tolist(), cache.digest, cache.url)
    stream = Stream(joined, batch_size=5, lanes=2, window=5)
    batches(stream, 3)
    other = Stream(alone, batch_size=5, lanes=2, window=5)
    other.load_state_dict(stream.state_dict())
    stream.close()


FILED: dict[str, dict[str, Sequence[int]]] = {
    "as it was": FILES,
    "one file": {"a": range(N)},
    "many files": {f"{i:02}": [i] for i in range(N)},
    "backwards": {"a": range(N - 1, -1, -1)},
    "shuffled": {"a": [(i * 7) % N for i in range(10)], "b": [(i * 7) % N for i in range(10, N)]},
    "among others": {
        "0": range(100, 140),
        "a": [i for pair in zip(range(N), range(200, 223), strict=True) for i in pair],
    },
    "far apart": {"a": [i for one in range(N) for i in (one, *range(1000 + 50 * one, 1050 + 50 * one))]},
    "with an empty file": {"a": [], "b": range(N), "c": []},
}


@pytest.mark.parametrize("filed", FILED)
@pytest.mark.parametrize("texts", [False, True], ids=["ints", "texts"])
def test_rows_are_found_wherever_they_lie_by_now(local: Folder, tmp_path: Path, filed: str, texts: bool) -> None:
    stored = put_cache(local, SHARDS, "stored", texts=texts)
    referenced = put_cache(local, SHARDS, "referenced", texts=texts)
    joined = JoinedRows(CacheRows(referenced), source_of(tmp_path, FILED[filed], texts=texts))
    assert all_values(joined) == all_values(CacheRows(stored))


def test_a_function_is_a_source_too(cache: Cache, local: Folder, module: Make) -> None:
    name = module(
        "from tests.storage.stream.caches import raw_rows\n"
        "def rows(count):\n"
        "    yield from (raw_rows(range(first, first + 1)) for first in range(count))\n"
    )
    source = make_source({"function": f"{name}:rows", "arguments": {"count": 30}})
    assert all_values(JoinedRows(CacheRows(cache), source)) == all_values(CacheRows(put_cache(local, SHARDS)))


def test_quarantined_samples_are_read_over(local: Folder, tmp_path: Path) -> None:
    """A gap in the ids costs no reading of its own, and their rows are not checked by anybody else's digest."""
    ids = [i for i in range(N) if i not in (2, 13)]
    cache = put_cache(local, [ids], "referenced")
    source = Watched(str(write_source(tmp_path / "source", {"a": range(N)})))
    joined = JoinedRows(CacheRows(cache), source)
    source.reads.clear()
    assert [int(i) for rows in scan(joined, 4, Reading(threads=1)) for i in rows.sample_id] == ids
    assert source.reads == [("a", 0, 5), ("a", 5, 9), ("a", 9, 13), ("a", 14, 18), ("a", 18, 22), ("a", 22, 23)]


def test_runs_of_rows_are_read_at_once(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "GAP", 2)
    source = Watched(str(write_source(tmp_path / "source", {"a": [*range(2), 50, 2, 51, 52, 3], "b": range(4, N)})))
    joined = JoinedRows(CacheRows(cache), source)
    source.reads.clear()
    rows = next(scan(joined, 4, Reading(threads=1, prefetch_bytes=0)))
    assert rows.sample_id.tolist() == [0, 1, 2, 3]
    assert source.reads[:2] == [("a", 0, 4), ("a", 6, 7)]


def test_a_filter_over_joined_rows(cache: Cache, local: Folder, tmp_path: Path) -> None:
    where = "soft_entropy < 2 and label != 3"
    stored = put_cache(local, SHARDS, "stored")
    joined = Selected(JoinedRows(CacheRows(cache), source_of(tmp_path)), where)
    assert all_values(joined) == all_values(Selected(CacheRows(stored), where))
    assert joined.cache is cache


def test_only_what_is_asked_for_is_read_of_the_cache(cache: Cache, tmp_path: Path) -> None:
    reads = watch(cache.store)
    for parts, sections in ((["inputs"], ["plain"]), (["inputs", "targets"], ["plain", "targets"])):
        joined = JoinedRows(CacheRows(cache, parts), source_of(tmp_path))
        reads.rows.clear()
        assert [rows.targets is None for rows in scan(joined, 50)] == ["targets" not in sections]
        assert reads.bytes == sum(section_bytes(cache, section) for section in sections)


def test_it_goes_to_another_process_without_what_the_source_holds(cache: Cache, tmp_path: Path) -> None:
    joined = JoinedRows(CacheRows(cache), source_of(tmp_path))
    told = all_values(joined)
    small = pickle.dumps(joined)
    assert all_values(pickle.loads(small)) == told
    assert vars(joined._source)["_last"] and "_last" not in vars(pickle.loads(small)._source)


# Another source


def test_a_changed_value_names_the_sample_the_file_and_what_to_do(cache: Cache, tmp_path: Path) -> None:
    source = source_of(tmp_path)
    path = tmp_path / "source" / "b.parquet"
    table = pq.read_table(path)
    n = table.column("n").to_pylist()
    n[3] += 1
    pq.write_table(table.set_column(2, "n", pa.array(n, pa.int16())), path)
    said = wrong(JoinedRows(CacheRows(cache), source))
    assert re.search(
        r"The sample '17' in row 3 of .*b\.parquet has inputs \(x float32\[2, 3\], n int16\) with the", said
    )
    assert f"The teacher of {cache.url} saw" in said and "Restore the source" in said


def test_a_changed_value_that_nobody_asks_for_does_not_matter(local: Folder, tmp_path: Path) -> None:
    cache = put_cache(local, [range(3)], "referenced")
    source = source_of(tmp_path, {"a": [0, 1, 2, 17]})
    assert all_values(JoinedRows(CacheRows(cache), source)) == all_values(CacheRows(put_cache(local, [range(3)])))


@pytest.mark.parametrize("texts", [False, True], ids=["ints", "texts"])
@pytest.mark.parametrize("absent", [[0], [22], [5, 6]], ids=str)
def test_a_sample_that_is_not_there_is_named(local: Folder, tmp_path: Path, texts: bool, absent: list[int]) -> None:
    cache = put_cache(local, SHARDS, "referenced", texts=texts)
    left = [i for i in range(N) if i not in absent]
    joined = JoinedRows(CacheRows(cache), source_of(tmp_path, {"a": left}, texts=texts))
    first = f"s{absent[0]}" if texts else f"{absent[0]}"
    said = wrong(joined)
    assert f"lacks {len(absent)} of the" in said and f"the first is '{first}'" in said
    assert re.search(r"source .*/source lacks .* of row group \d .*shards/.*Restore the source", said)


@pytest.mark.parametrize(
    "columns", [{"inputs": ["n", "x"]}, {"inputs": ["x"]}, {"inputs": ["x", "n", "label"], "label": False}], ids=str
)
def test_another_choice_of_columns_is_another_input(cache: Cache, tmp_path: Path, columns: dict[str, Any]) -> None:
    url = write_source(tmp_path / "source", FILES)
    if "label" in columns["inputs"]:
        for path in Path(url).iterdir():
            table = pq.read_table(path)
            pq.write_table(table.rename_columns(["sample_id", "x", "n", "category"]), path)
        columns = {"inputs": ["x", "n", "category"]}
    joined = JoinedRows(CacheRows(cache), make_source({"parquet": url, "columns": columns}))
    said = wrong(joined)
    assert "has inputs (" in said and "columns.inputs" in said


def test_a_first_file_of_another_shape_gives_nobody_elses_rows_its_shape(local: Folder, tmp_path: Path) -> None:
    """numpy would stretch one value over a row."""
    cache = put_cache(local, [range(4, 8)], "referenced")
    url = write_source(tmp_path / "source", {"b": range(4, 8)})
    table = raw_rows([99]).set_column(2, "n", pa.array([[1, 2]], pa.list_(pa.int16(), 2)))
    pq.write_table(table, Path(url) / "a.parquet")
    said = wrong(JoinedRows(CacheRows(cache), make_source({"parquet": url})))
    assert re.search(r"b\.parquet has inputs \(x .*, n int16\)\. .*a\.parquet has \(x .*, n int16\[2\]\)", said)


def test_a_file_that_changes_under_a_stream_is_seen(cache: Cache, tmp_path: Path) -> None:
    joined = JoinedRows(CacheRows(cache), source_of(tmp_path))
    write_source(tmp_path / "source", {"b": [*range(15, 23), 14]})
    assert re.search(r"Row 0 of .*b\.parquet is the sample '15'\. It was '14' when the ids were read", wrong(joined))
    write_source(tmp_path / "source", {"b": range(14, 18)})
    assert re.search(r"b\.parquet ends before row \d\. It had 9 rows", wrong(joined))
    (tmp_path / "source" / "b.parquet").unlink()
    assert re.search(r"^Rows 0 to \d of .*b\.parquet cannot be read, and the ids could\. ", wrong(joined))


@pytest.mark.parametrize("texts", [False, True], ids=["ints", "texts"])
def test_an_id_that_a_source_has_twice_is_refused(cache: Cache, tmp_path: Path, texts: bool) -> None:
    first = "s4" if texts else "4"
    with pytest.raises(SourceError, match=rf"'{first}' appears in row 4 of .*a\.parquet and in row 9 of .*b\.parquet"):
        JoinedRows(CacheRows(cache), source_of(tmp_path, {"a": range(14), "b": [*range(14, 23), 4]}, texts=texts))


@pytest.mark.parametrize(("texts", "words"), [(False, "integers, .* texts"), (True, "texts, .* integers")])
def test_texts_are_not_looked_for_among_integers(local: Folder, tmp_path: Path, texts: bool, words: str) -> None:
    cache = put_cache(local, SHARDS, "referenced", texts=not texts)
    with pytest.raises(UsageError, match=f"The sample ids of .* are {words}"):
        JoinedRows(CacheRows(cache), source_of(tmp_path, texts=texts))


def test_files_with_ids_of_two_types_are_refused(cache: Cache, tmp_path: Path) -> None:
    url = write_source(tmp_path / "source", {"a": range(14)})
    write_source(tmp_path / "source", {"b": range(14, 23)}, texts=True)
    with pytest.raises(SourceError, match="integers and texts"):
        JoinedRows(CacheRows(cache), make_source({"parquet": url}))


def test_an_empty_source_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is empty"):
        JoinedRows(CacheRows(cache), source_of(tmp_path, {"a": []}))


def test_a_cache_that_holds_its_inputs_is_not_joined(local: Folder, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"holds its inputs \(x, n\).*Leave the source out"):
        JoinedRows(CacheRows(put_cache(local, SHARDS)), source_of(tmp_path))


def test_the_ids_of_a_source_are_read_without_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path)
    asked: list[Any] = []
    really = pq.ParquetFile.read

    def read(self: pq.ParquetFile, columns: Any = None) -> pa.Table:
        asked.append(columns)
        return really(self, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read", read)
    assert [i for file in source.files() for i in source.ids(file).to_pylist()] == list(range(N))
    assert asked == [["sample_id"]] * 2


def test_shards_of_many_rows_are_found_by_many_threads(local: Folder, tmp_path: Path) -> None:
    """Threads share what is kept of the ids and of the source."""
    ids = np.random.default_rng(0).permutation(3000)
    cache = seal(local, "big", [put_rows(local, ids.tolist(), "referenced")], {})
    joined = JoinedRows(
        CacheRows(cache), source_of(tmp_path, {"a": range(1000), "b": range(1000, 3000)}, group_rows=400)
    )
    stream = Stream(joined, batch_size=100, reading=Reading(threads=8))
    for batch in batches(stream, 30):
        np.testing.assert_array_equal(batch.inputs["n"], (batch.sample_id * 3).astype(np.int16))
        np.testing.assert_array_equal(batch.inputs["x"][:, 1, 2], (batch.sample_id + 5 / 8).astype(np.float32))
    stream.close()


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        (None, r"a\.parquet has no column 'sample_id' .*source\.columns\.sample_id"),
        (pa.array([0.5, 1.5, 2.5]), "'sample_id' are of type double with 0 nulls"),
        (pa.array([0, None, 2]), "'sample_id' are of type int64 with 1 nulls"),
        (pa.array([0, 1, 2**63], pa.uint64()), "the column 'sample_id' does not fit int64"),
    ],
    ids=["none", "float", "null", "too large"],
)
def test_ids_that_cannot_be_are_refused_as_in_a_source(cache: Cache, tmp_path: Path, ids: Any, sentence: str) -> None:
    url = write_source(tmp_path / "source", {"a": range(3)})
    table = pq.read_table(Path(url) / "a.parquet").drop_columns(["sample_id"])
    pq.write_table(table if ids is None else table.append_column("sample_id", ids), Path(url) / "a.parquet")
    with pytest.raises(SourceError, match=sentence):
        JoinedRows(CacheRows(cache), make_source({"parquet": url}))
