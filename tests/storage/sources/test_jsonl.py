"""Columns of JSON lines: one type in all of a file, settled once, and a sentence with the line where there is none."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.base.errors import SourceError
from storage.encodings.dense import Dense
from storage.objectstore.folder import Folder
from storage.rows.cache_rows import CacheRows
from storage.rows.joined_rows import JoinedRows
from storage.rows.source_rows import SourceRows
from storage.samples import tensor_columns
from storage.samples.columns import Columns
from storage.samples.inputs_digest import inputs_digests
from storage.samples.rows_digest import rows_digest
from storage.samples.samples import as_samples
from storage.sources import jsonl, make_source
from storage.sources.json_lines import Lines
from storage.sources.jsonl import JsonlSource
from storage.stream.scan import scan
from tests.storage.stream import caches


def source_of(path: Path, values: list[Any], **columns: Any) -> JsonlSource:
    path.write_text("".join(json.dumps({"sample_id": n, "x": value}) + "\n" for n, value in enumerate(values)))
    return JsonlSource(str(path), Columns(**columns))


def read_all(source: JsonlSource) -> pa.Table:
    return pa.concat_tables([source.read(file, 0, file.rows) for file in source.files()])


def looked_at_together(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("storage.sources.jsonl._ROWS", rows)


SCALARS = {"int": 1, "float": 0.5, "null": None}
LISTS = {"ints": [1, 2], "floats": [0.5, 2], "nulls": [None, None], "null": None}
PAIRS = [(kinds[a], kinds[b]) for kinds in (SCALARS, LISTS) for a, b in itertools.product(kinds, repeat=2)]


# Types of two blocks of rows are joined, or found in one block.
@pytest.mark.parametrize("together", [2, 100])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_slice_is_what_is_read_of_those_rows(
    tmp_path: Path, pair: tuple[Any, Any], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at_together(monkeypatch, together)
    values = [pair[0], pair[0], pair[1]]
    source = source_of(tmp_path / "a.jsonl", values)
    [file], rows = source.files(), range(4)
    whole = source.raw(file, 0, 3)
    assert whole.column("x").type == pa.array(values).type
    for start, stop in ((a, b) for a in rows for b in rows if a < b):
        assert source.raw(file, start, stop).equals(whole.slice(start, stop - start))
        anew = JsonlSource(source.jsonl)
        assert anew.raw(file, start, stop).equals(whole.slice(start, stop - start))


@pytest.mark.parametrize("values", [[1], [0.5], [None], ["t"], [[1, 2]], [[0.5]], [[[1]]], [True], [{"a": [1]}], [[]]])
def test_a_file_of_one_type_has_arrows_own(tmp_path: Path, values: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at_together(monkeypatch, 2)
    source = source_of(tmp_path / "a.jsonl", values * 5)
    assert source.raw(source.files()[0], 1, 4).column("x").equals(pa.chunked_array([pa.array(values * 3)]))


@pytest.mark.parametrize("values", [[1, 2, 3], [0.5, 1.5, 2.5], [[1], [2], [3]], [[0.5], [1.5], [2.5]]], ids=str)
def test_rows_of_one_type_have_the_digest_of_arrows_own_types(tmp_path: Path, values: list[Any]) -> None:
    plain = as_samples(pa.table({"sample_id": [0, 1, 2], "x": values}), Columns(), "made by hand")
    assert rows_digest(read_all(source_of(tmp_path / "a.jsonl", values))) == rows_digest(plain)


def test_rows_have_one_digest_whatever_is_read_with_them(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.jsonl", [[1, 2], [1, 2.5]])
    [file] = source.files()
    alone, whole = source.read(file, 0, 1), source.read(file, 0, 2)
    assert tensor_columns.form(alone.schema.field("x")) == (np.dtype("float64"), (2,))
    assert rows_digest(alone) == rows_digest(whole.slice(0, 1))
    assert inputs_digests(alone)[0] == inputs_digests(whole)[0]


def test_inputs_by_reference_are_read_in_other_groups_than_the_teachers(
    tmp_path: Path, local: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = caches.GROUP_ROWS + 2
    source = source_of(tmp_path / "a.jsonl", [[n, 2] for n in range(rows - 1)] + [[0.5, 2]])
    [file] = source.files()
    monkeypatch.setattr(caches, "raw_rows", lambda ids: source.raw(file, min(ids), max(ids) + 1))
    cache = caches.put_cache(local, [range(rows)], "referenced")
    joined = JoinedRows(CacheRows(cache), make_source(source.to_dict()))
    x = np.concatenate([part.inputs["x"] for part in scan(joined, rows)])
    assert x.tolist() == [[n, 2] for n in range(rows - 1)] + [[0.5, 2]]


def test_a_file_is_looked_through_once_for_the_types_of_all_its_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at_together(monkeypatch, 2)
    source = source_of(tmp_path / "a.jsonl", list(range(7)), inputs=("x",))
    [file], passes, objects = source.files(), list[tuple[int, int]](), Lines.objects

    def watched(self: Lines, start: int, stop: int) -> Any:
        passes.append((start, stop))
        return objects(self, start, stop)

    monkeypatch.setattr(Lines, "objects", watched)
    source.ids(file)
    assert passes.count((0, 7)) == 2  # the ids, and the types
    passes.clear()
    for start in range(1, 6):
        source.read(file, start, start + 1)
    assert (0, 7) not in passes


def test_columns_that_are_not_wanted_may_be_of_any_types(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"sample_id": 1, "x": 1, "y": 1}\n{"sample_id": 2, "x": 1, "y": "t"}\n')
    source = make_source({"jsonl": str(path), "columns": {"inputs": ["x"]}})
    assert source.read(source.files()[0], 0, 2).schema.names == ["sample_id", "x"]


def test_few_lines_are_held_where_lines_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.sources.json_lines.CHUNK", 64)
    source, held = source_of(tmp_path / "a.jsonl", ["t" * 30] * 20), list[int]()
    widened = jsonl._widened

    def watched(kind: pa.DataType, some: list[Any]) -> pa.DataType:
        held.append(len(some))
        return widened(kind, some)

    monkeypatch.setattr(jsonl, "_widened", watched)
    source.raw(source.files()[0], 0, 1)
    assert max(held) <= 2
    assert sum(held) == 2 * 20


@pytest.mark.parametrize(
    ("lines", "x"),
    [
        (['{"x": "2024-01-01"}', '{"x": "2024-01-02 10:00:00"}'], ["2024-01-01", "2024-01-02 10:00:00"]),
        (['{"x": [null, null]}', '{"x": [1, 2]}'], [[None, None], [1, 2]]),
        (['{"x": 1, "x": 2}'], [2]),
        (['{"x": 1, "y": 1e400}', '{"x": 2, "y": "\\ud800"}'], [1, 2]),
        (['{"x": NaN}', '{"x": 1e400}'], [float("nan"), float("inf")]),
    ],
    ids=["dates", "lists of nulls", "a key twice", "not wanted", "no numbers"],
)
def test_values_that_pyarrows_own_reader_changes_or_refuses(tmp_path: Path, lines: list[str], x: list[Any]) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = JsonlSource(str(tmp_path), Columns(inputs=("x",)))
    assert str(source.raw(source.files()[0], 0, len(x)).column("x").to_pylist()) == str(x)


@pytest.mark.parametrize("together", [1, 2, 100])
@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([None, 1, "t", "t"], 3),
        ([1, 0.5, 2**60 + 1], 3),
        ([1, 1, 2**70], 3),
        ([[1], [1], 1], 3),
        ([1, 1, "\ud800"], 3),
        ([{"a": 1}, {"a": 1}, {"\ud800": 1}], 3),
    ],
    ids=ascii,
)
def test_the_line_at_fault_is_named(
    tmp_path: Path, values: list[Any], line: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at_together(monkeypatch, together)
    source = source_of(tmp_path / "a.jsonl", values)
    with pytest.raises(SourceError, match=rf"a\.jsonl, line {line}, has a value of 'x' that cannot be used: ") as found:
        read_all(source)
    str(found.value).encode()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"sample_id": 1, "\\ud800": 1}', "line 1, has a key that is no text"),
        ('{"sample_id": 1, "x": 1}\n{"sample_id": 2, "\\ud800": 1}', r"line 2, has the key '\\ud800', which the first"),
        ('{"sample_id": 1, "x": 1}\n' + "[" * 100_000, "line 2, is no JSON: "),
        ('null\n{"sample_id": 1, "x": 1}', "line 1, is a JSON NoneType"),
    ],
    ids=["first key", "later key", "nested", "null"],
)
def test_what_no_line_may_hold_is_a_sentence_that_can_be_printed(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(SourceError, match=found) as refused:
        read_all(JsonlSource(str(tmp_path)))
    str(refused.value).encode()


@pytest.mark.parametrize("reader", ["a stream", "a plan"])
def test_files_of_other_types_are_told_apart_by_dtype_and_shape(tmp_path: Path, reader: str) -> None:
    """Both are 24 bytes a row."""
    from teacher_infer.planning.key_parts import KeyParts
    from teacher_infer.planning.plan import make_plan

    source_of(tmp_path / "a.jsonl", [[1, 2, 3]])
    source_of(tmp_path / "b.jsonl", [[1, 2, 0.5]])
    source = JsonlSource(str(tmp_path))
    with pytest.raises(SourceError) as refused:
        _ = make_plan(source, 3, KeyParts.of("teacher", Dense(), 0)) if reader == "a plan" else SourceRows(source)
    assert refused.value.args[:2] == (
        f"{tmp_path}/b.jsonl has the columns sample_id int64, x float64[3].",
        "The rows before them have sample_id int64, x int64[3].",
    )
