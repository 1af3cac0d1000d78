"""What every source promises, on the same rows from files and from a function."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.errors import RecipeError, SourceError
from storage.samples import tensor_columns
from storage.samples.rows_digest import rows_digest
from storage.sources import SOURCES, Source, decoding, make_source
from storage.sources.settings import SourceSection

ROWS = 23
MODULE = '''
"""Rows that follow from their index."""
import numpy as np, pyarrow as pa

def rows(count, changed=-1):
    ids = np.arange(count)
    x = (ids[:, None] * 10 + np.arange(3)).astype("float32")
    x[changed] += changed >= 0
    return pa.table({"sample_id": ids, "x": list(x), "label": ids % 4})

def at_once(count=23, changed=-1):
    return rows(count, changed)

def in_pieces(count=23, changed=-1):
    table = rows(count, changed)
    for start, stop in ((0, 4), (4, 4), (4, 5), (5, count)):
        yield table.slice(start, stop - start)
'''


def raw(changed: int = -1) -> pa.Table:
    """The same rows as MODULE's."""
    ids = np.arange(ROWS)
    x = (ids[:, None] * 10 + np.arange(3)).astype(np.float32)
    x[changed] += changed >= 0
    return pa.table({"sample_id": ids, "x": list(x), "label": ids % 4})


Open = Callable[..., Source]


WAYS = ["one file", "a folder", "a pattern", "a file of odd groups", "lines", "files of lines", "a table", "tables"]


@pytest.fixture(params=WAYS)
def open_source(request: pytest.FixtureRequest, tmp_path: Path, module: Callable[[str], str]) -> Open:
    """`open_source(changed)`: a source of `raw(changed)`, by each way in."""
    kind = request.param
    if kind in ("a table", "tables"):
        function = f"{module(MODULE)}:{'at_once' if kind == 'a table' else 'in_pieces'}"
        return lambda changed=-1, **more: make_source(
            {"function": function, "arguments": {"count": ROWS, "changed": changed}, **more}
        )

    def write(changed: int = -1, **more: Any) -> Source:
        folder = tmp_path / f"data {changed}"
        folder.mkdir(exist_ok=True)
        table = raw(changed)
        if "lines" in kind:
            cuts = (0, ROWS) if kind == "lines" else (0, 9, ROWS)
            for number, (start, stop) in enumerate(pairwise(cuts)):
                write_lines(folder / f"{number}.jsonl", table.slice(start, stop - start))
            return make_source({"jsonl": f"{folder}/0.jsonl" if kind == "lines" else str(folder), **more})
        if kind == "a file of odd groups":
            with pq.ParquetWriter(folder / "a.parquet", table.schema) as writer:
                for start, stop in ((0, 1), (1, 6), (6, 13), (13, 15), (15, ROWS)):
                    writer.write_table(table.slice(start, stop - start))
        elif kind == "one file":
            pq.write_table(table, folder / "a.parquet")
        else:
            pq.write_table(table.slice(0, 9), folder / "a.parquet", row_group_size=4)
            pq.write_table(table.slice(9), folder / "b.parquet", row_group_size=5)
            (folder / "README.txt").write_text("no samples")
        end = {"one file": "/a.parquet", "a pattern": "/*.parquet"}.get(kind, "")
        return make_source({"parquet": f"{folder}{end}", **more})

    return write


def write_lines(path: Path, table: pa.Table) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))


def read_all(source: Source) -> pa.Table:
    return pa.concat_tables([source.read(file, 0, file.rows) for file in source.files()])


def test_every_source_is_tried_here() -> None:
    assert set(SOURCES) == {"parquet", "jsonl", "function"}


def test_every_way_in_gives_the_same_samples(open_source: Open) -> None:
    table = read_all(open_source())
    assert table.schema.names == ["sample_id", "x", "label"]
    assert table.column("sample_id").to_pylist() == list(range(ROWS))
    x = tensor_columns.unpack(table.column("x"), table.schema.field("x"))
    assert np.array_equal(x, np.stack(raw().column("x").to_pylist()))
    # JSON's numbers are of 64 bits, and a column's type counts.
    if x.dtype == np.float32:
        assert rows_digest(table) == "5c6dbaf2d7b9bcad491383b937244d08fb9e8a5adaec2b81da38719f20e6ec2e"


def test_ids_are_stable(open_source: Open) -> None:
    first, again = open_source(), open_source()
    assert [file.rows for file in first.files()] == [file.rows for file in again.files()]
    assert [file.name for file in first.files()] == [file.name for file in again.files()]
    assert rows_digest(read_all(first)) == rows_digest(read_all(first)) == rows_digest(read_all(again))


def test_a_slice_is_those_rows(open_source: Open) -> None:
    source = open_source()
    for file in source.files():
        whole = source.read(file, 0, file.rows)
        for start in range(file.rows):
            for stop in range(start + 1, file.rows + 1):
                part = source.read(file, start, stop)
                assert part.num_rows == stop - start
                assert part.equals(whole.slice(start, stop - start)), (start, stop)


def test_small_pieces_are_the_same_samples(open_source: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_all(open_source())
    monkeypatch.setattr("storage.samples.pieces.PIECE_BYTES", 50)
    monkeypatch.setattr(decoding, "PIECE_BYTES", 50)
    monkeypatch.setattr(decoding, "WHOLE_BYTES", 50)
    monkeypatch.setattr("storage.sources.json_lines.CHUNK", 50)
    source = open_source()
    pieces = [piece for file in source.files() for piece in source.pieces(file, 0, file.rows)]
    assert max(piece.num_rows for piece in pieces) <= 4
    assert pa.concat_tables(pieces).equals(whole)
    assert read_all(source).equals(whole)
    assert [piece.num_rows for piece in source.pieces(source.files()[0], 2, 2)] == [0]


def test_the_digest_of_a_slice_is_that_of_its_values(open_source: Open) -> None:
    source = open_source()
    file = source.files()[-1]
    start, stop = file.rows - 7, file.rows - 2
    assert rows_digest(source.read(file, start, stop)) == rows_digest(
        source.read(file, 0, file.rows).slice(start, stop - start)
    )


@pytest.mark.parametrize("changed", [0, 11, ROWS - 1])
def test_one_changed_value_changes_the_digest(open_source: Open, changed: int) -> None:
    assert rows_digest(read_all(open_source())) != rows_digest(read_all(open_source(changed)))


def test_columns_are_chosen_by_name(open_source: Open) -> None:
    assert read_all(open_source(columns={"inputs": ["x"]})).schema.names == ["sample_id", "x", "label"]
    assert read_all(open_source(columns={"inputs": ["x"], "label": "sample_id"})).column("label")[5].as_py() == 5


@pytest.mark.parametrize("inputs", [["x"], None])
def test_label_false_leaves_labels_out(open_source: Open, inputs: list[str] | None) -> None:
    source = open_source(columns={"inputs": inputs, "label": False})
    assert read_all(source).schema.names == ["sample_id", "x"]


def test_a_missing_column_is_named_with_the_nearest(open_source: Open) -> None:
    source = open_source(columns={"inputs": ["x"], "label": "lable"})
    with pytest.raises(SourceError, match=r"no column 'lable'.*source\.columns\.label.*Did you mean 'label'\?"):
        source.read(source.files()[0], 0, 1)
    source = open_source(columns={"inputs": ["pixels_x", "x"]})
    with pytest.raises(SourceError, match=r"no column 'pixels_x' \(asked for as source\.columns\.inputs\)"):
        source.read(source.files()[0], 0, 1)


def test_a_source_says_what_it_is_and_comes_back_from_that(open_source: Open) -> None:
    source = open_source(columns={"inputs": ["x"]})
    again = make_source(source.to_dict())
    assert again == source
    assert again.to_dict() == source.to_dict()


# Files


def test_files_stand_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.parquet", "a/z.parquet", "c.parquet", "a/b.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(raw().slice(0, 2), tmp_path / name)
    found = [file.name.removeprefix(f"{tmp_path}/") for file in make_source({"parquet": str(tmp_path)}).files()]
    assert found == ["a/b.parquet", "a/z.parquet", "b.parquet", "c.parquet"]


def test_a_file_added_to_a_folder_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    pq.write_table(raw().slice(0, 9), tmp_path / "b.parquet")
    source = make_source({"parquet": str(tmp_path)})
    before = source.files()
    pq.write_table(raw().slice(9), tmp_path / "a.parquet")
    assert set(before) < set(source.files())


@pytest.mark.parametrize("end", ["", "/none.parquet", "/*.parquet", "/no/such/folder"])
def test_a_place_without_parquet_files_is_named(tmp_path: Path, end: str) -> None:
    (tmp_path / "notes.txt").write_text("no samples")
    with pytest.raises(SourceError, match=rf"^There are no Parquet files at '{tmp_path}.*A source is a file, a folder"):
        make_source({"parquet": f"{tmp_path}{end}"}).files()


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    pq.write_table(raw(), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(content)
    with pytest.raises(SourceError, match=r"b\.parquet' cannot be read: .*Every file of a source is Parquet"):
        make_source({"parquet": str(tmp_path)}).files()


def test_an_unknown_protocol_is_refused_in_a_sentence() -> None:
    with pytest.raises(SourceError, match="nonsense://"):
        make_source({"parquet": "nonsense://bucket/data"}).files()


def test_null_ids_and_null_labels_are_refused_with_the_files_name(tmp_path: Path) -> None:
    for column, found in (("sample_id", "sample ids"), ("label", "labels")):
        table = raw().slice(0, 3)
        at = table.schema.names.index(column)
        path = tmp_path / f"{column}.parquet"
        pq.write_table(table.set_column(at, column, pa.array([0, None, 2])), path)
        source = make_source({"parquet": str(path)})
        with pytest.raises(SourceError, match=rf"{path}: the {found} in '{column}' .*1 nulls"):
            source.read(source.files()[0], 0, 3)


def test_only_the_columns_that_are_wanted_are_looked_at(tmp_path: Path) -> None:
    pq.write_table(raw().append_column("text", pa.array(["a"] * ROWS)), tmp_path / "a.parquet")
    everything = make_source({"parquet": str(tmp_path)})
    with pytest.raises(SourceError, match="Column 'text'"):
        everything.read(everything.files()[0], 0, 1)
    source = make_source({"parquet": str(tmp_path), "columns": {"inputs": ["x"]}})
    assert source.read(source.files()[0], 0, 1).schema.names == ["sample_id", "x", "label"]


def test_samples_are_read_behind_any_url(folder: Any) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(raw(), sink)
    folder.create("data/a.parquet", sink.getvalue().to_pybytes())
    source = make_source({"parquet": folder.url_of("data")})
    assert source.read(source.files()[0], 3, 5).column("sample_id").to_pylist() == [3, 4]


# Lines


def lines(path: Path, text: str | bytes, **columns: Any) -> Source:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return make_source({"jsonl": str(path), "columns": columns})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n  \n\t\n"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_are_rows_whatever_ends_them(tmp_path: Path, end: str, last: bool) -> None:
    text = end.join(json.dumps({"sample_id": n, "x": [n, n + 1]}) for n in range(5)) + end * last
    source = lines(tmp_path / "a.jsonl", text)
    assert source.files()[0].rows == 5
    assert read_all(source).column("sample_id").to_pylist() == list(range(5))


def test_lines_are_found_across_pieces_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n\n" + "".join(f'{n % 2 * " "}{{"sample_id": {n}, "x": {n}}}\n{n % 3 * " "}\n' for n in range(40)) + "   "
    expected = list(range(40))
    for size in (1, 2, 3, 7, 64, 1000):
        monkeypatch.setattr("storage.sources.json_lines.CHUNK", size)
        assert read_all(lines(tmp_path / "a.jsonl", text)).column("sample_id").to_pylist() == expected


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ('{"sample_id": 3, "x": ', r"is no JSON: Expecting value"),
        ("[1, 2]", r"is a JSON list\. Every line of a JSONL file is a JSON object"),
        (b'{"sample_id": 3, "x": "\xff"}', "is no JSON: .*utf-8"),
        ('{"sample_id": 3, "x": "text"}', "has a value of 'x' that cannot be used"),
        (
            '{"sample_id": 3, "x": 1, "y": 1}',
            r"has the key 'y', which the first line has not\..*source\.columns\.inputs",
        ),
    ],
)
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, broken: str | bytes, found: str) -> None:
    good = b'{"sample_id": 1, "x": 1}\n\n{"sample_id": 2, "x": 2}\n'
    source = lines(tmp_path / "a.jsonl", good + (broken if isinstance(broken, bytes) else broken.encode()) + b"\n")
    with pytest.raises(SourceError, match=rf"^{tmp_path}/a\.jsonl, line 4,:? .*{found}"):
        read_all(source)


def test_a_lone_surrogate_is_no_text(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", '{"sample_id": "a", "x": 1}\n{"sample_id": "\\ud800", "x": 2}\n')
    with pytest.raises(SourceError, match="line 2, has a value of 'sample_id' that cannot be used"):
        read_all(source)


VALUES = {
    "a fraction later": ([1, 2, 3], [0.5, 1, 2], "float64"),
    "a fraction first": ([0.5, 1, 2], [3, 4, 5], "float64"),
    "whole numbers": ([1, 2, 3], [4, 5, 6], "int64"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_row_has_one_type_whichever_rows_are_read_with_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sources.jsonl._ROWS", 2)
    one, other, dtype = VALUES[name]
    text = "".join(json.dumps({"sample_id": n, "x": other if n == 4 else one}) + "\n" for n in range(6))
    source = lines(tmp_path / "a.jsonl", text)
    [file], whole = source.files(), read_all(source)
    assert tensor_columns.form(whole.schema.field("x")) == (np.dtype(dtype), (3,))
    for start in range(6):
        for stop in range(start + 1, 7):
            assert source.read(file, start, stop).equals(whole.slice(start, stop - start))


@pytest.mark.parametrize(
    ("values", "line"),
    [([None, 1, "t"], 3), ([1, 0.5, 2**60 + 1], 3), ([1, 2, 3, "t"], 4), ([None, None, [1], 2], 4)],
    ids=str,
)
@pytest.mark.parametrize("together", [1, 2, 100])
def test_the_first_value_that_fits_no_other_is_named(
    tmp_path: Path, values: list[Any], line: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sources.jsonl._ROWS", together)
    text = "".join(json.dumps({"sample_id": n, "x": value}) + "\n" for n, value in enumerate(values))
    with pytest.raises(SourceError, match=rf"^{tmp_path}/a\.jsonl, line {line}, has a value of 'x' that cannot"):
        read_all(lines(tmp_path / "a.jsonl", text))


def test_a_key_that_is_no_text_and_a_line_that_never_ends_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="line 1, has a key that is no text"):
        read_all(lines(tmp_path / "a.jsonl", '{"sample\\ud800": 1}\n'))
    with pytest.raises(SourceError, match="line 1, is no JSON"):
        read_all(lines(tmp_path / "b.jsonl", "[" * 100_000))


def test_a_text_that_looks_like_a_date_stays_text(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", '{"sample_id": "2026-11-27", "x": 1}\n')
    assert read_all(source).column("sample_id").to_pylist() == ["2026-11-27"]


def test_a_key_that_a_line_lacks_is_a_null(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", '{"sample_id": 1, "x": 1}\n{"sample_id": 2}\n')
    with pytest.raises(SourceError, match="Column 'x' holds 1 nulls"):
        read_all(source)


def test_lines_that_another_file_took_the_place_of_are_read_anew(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", '{"sample_id": 1, "x": 1}\n')
    read_all(source)
    lines(tmp_path / "a.jsonl", '{"sample_id": 1, "x": 1}\n{"sample_id": 22, "x": 1}\n')
    assert read_all(source).column("sample_id").to_pylist() == [1, 22]


# Functions


FUNCTIONS = """
import pyarrow as pa
def good(): return pa.table({"sample_id": [1], "x": [1.0]})
def nothing(): yield from ()
def none(): return None
def numbers(): yield good(); yield 3
def rows(): return [{"sample_id": 1}]
def mixed(): yield good(); yield pa.table({"sample_id": [1], "y": [1.0]})
def broken(): return len(5)
def broken_later(): yield good(); yield len(5)
"""


@pytest.mark.parametrize(
    "name, found",
    [
        ("nothing", "yielded nothing"),
        ("none", "did not give Arrow tables"),
        ("numbers", "did not give Arrow tables"),
        ("rows", "did not give Arrow tables"),
        ("mixed", "different|schema|columns"),
    ],
)
def test_a_function_that_gives_no_tables_is_named(module: Callable[[str], str], name: str, found: str) -> None:
    function = f"{module(FUNCTIONS)}:{name}"
    with pytest.raises(SourceError, match=rf"^{function} .*{found}"):
        make_source({"function": function}).files()


def test_arguments_that_a_function_does_not_take_are_refused(module: Callable[[str], str]) -> None:
    function = f"{module(FUNCTIONS)}:good"
    with pytest.raises(SourceError, match=rf"^{function} refused its arguments: .*'split'.*source\.arguments"):
        make_source({"function": function, "arguments": {"split": "train"}}).files()


@pytest.mark.parametrize("name", ["broken", "broken_later"])
def test_a_function_that_fails_inside_is_named_with_its_failure(module: Callable[[str], str], name: str) -> None:
    function = f"{module(FUNCTIONS)}:{name}"
    with pytest.raises(SourceError, match=rf"^{function} failed \(TypeError: object of type 'int' has no len"):
        make_source({"function": function}).files()


def test_a_misspelt_function_is_answered_with_the_nearest(module: Callable[[str], str]) -> None:
    with pytest.raises(RecipeError, match=r"source\.function: .*no function 'goood'\. Did you mean 'good'\?"):
        make_source({"function": f"{module(FUNCTIONS)}:goood"}).files()


def test_a_function_is_called_once(module: Callable[[str], str]) -> None:
    name = module("calls = []\n" + FUNCTIONS.replace("def good():", "def good(): calls.append(1);"))
    source = make_source({"function": f"{name}:good"})
    for _ in range(3):
        source.read(source.files()[0], 0, 1)
    assert sys.modules[name].calls == [1]


# Settings


@pytest.mark.parametrize("settings", [{}, {"parquet": "a", "function": "b:c"}, {"parquet": None}])
def test_a_source_is_of_exactly_one_kind(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"^source: name exactly one of jsonl, parquet and function\.$"):
        make_source(settings)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"colums": {}}, r"^unknown key 'source\.colums'\. Did you mean 'columns'\?"),
        ({"columns": {"lable": "x"}}, r"^unknown key 'source\.columns\.lable'\. Did you mean 'label'\?"),
        ({"columns": {"label": True}}, r"^source\.columns\.label: "),
        ({"arguments": {}}, r"^source: arguments belong to a function\.$"),
        (
            {"parquet": None, "function": "a:b", "arguments": {"x": float("nan")}},
            r"^source\.arguments: arguments are JSON",
        ),
    ],
)
def test_a_mapping_is_checked_as_a_recipe_is(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(RecipeError, match=rule):
        make_source({"parquet": "a", **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"parquet": "/a", "columns": {"inputs": ["x", "y"], "label": False}},
        {"jsonl": "s3://b/c", "columns": {"sample_id": "key"}},
        {"function": "a:b", "arguments": {"n": 1, "of": [1, None]}},
    ],
)
def test_a_section_gives_the_source_that_its_settings_give(settings: dict[str, Any]) -> None:
    section = SourceSection.model_validate(settings)
    source = make_source(section)
    assert source == make_source(settings) == make_source(section.settings()) == make_source(source.to_dict())
    assert source.columns == section.columns
    assert {**source.to_dict(), "columns": None} == {**settings, "columns": None}
    assert section.settings() == json.loads(json.dumps(section.settings()))  # as a cache's lineage has them


def test_a_large_row_group_is_decoded_once_for_all_that_lies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"sample_id": range(1000), "x": range(1000)}), tmp_path / "a.parquet")
    decoded: list[Any] = []
    real = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", lambda *a, **k: decoded.append(1) or real(*a, **k))
    source = make_source({"parquet": str(tmp_path)})
    [file] = source.files()
    for start in range(0, 1000, 100):
        assert source.read(file, start, start + 100).column("x").to_pylist() == list(range(start, start + 100))
    assert len(decoded) == 1


def test_a_file_that_another_took_the_place_of_is_read_anew(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sample_id": range(10), "x": range(10)}), tmp_path / "a.parquet")
    source = make_source({"parquet": str(tmp_path)})
    [file] = source.files()
    source.read(file, 0, 10)
    pq.write_table(pa.table({"sample_id": range(10), "x": [n * 1000003 for n in range(10)]}), tmp_path / "a.parquet")
    assert source.read(file, 1, 2).column("x").to_pylist() == [1000003]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_lists_of_another_length_in_a_later_piece_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(decoding, "PIECE_BYTES", 50)
    monkeypatch.setattr(decoding, "WHOLE_BYTES", 50)
    monkeypatch.setattr("storage.sources.json_lines.CHUNK", 50)
    table = pa.table({"sample_id": range(20), "x": [[1.0, 2.0]] * 16 + [[1.0, 2.0, 3.0]] * 4})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        write_lines(path, table)
    source = make_source({kind: str(path)})
    with pytest.raises(SourceError) as refused:
        source.read(source.files()[0], 0, 20)
    assert refused.value.args == (
        f"{path} has the columns sample_id int64, x float64[3].",
        "The rows before them have sample_id int64, x float64[2].",
        "All rows of a source have the same columns, types and shapes.",
    )
