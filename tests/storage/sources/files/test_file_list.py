"""Which files of a folder or a pattern are a source's: links, hidden names, endings, names that look like patterns."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.base.errors import SourceError
from storage.objectstore.folder import Folder
from storage.sources import Source, json_lines, make_source
from storage.sources.files.file_list import list_files

PARQUET = (".parquet", ".pq", ".parq")


def parquet(first: int) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"sample_id": [first], "x": [float(first)]}), sink)
    return sink.getvalue().to_pybytes()


def content(kind: str, first: int) -> bytes:
    """A file of one row with this id."""
    return parquet(first) if kind == "parquet" else f'{{"sample_id": {first}, "x": {first}.0}}\n'.encode()


def write(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def ids(source: Source) -> list[Any]:
    return [one for file in source.files() for one in source.read(file, 0, file.rows).column("sample_id").to_pylist()]


def names(url: str, root: Path) -> list[str]:
    return [name.removeprefix(f"{root}/") for name in list_files(url, PARQUET, "Parquet").names]


# Links


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_links_to_files_and_folders_are_followed(tmp_path: Path, kind: str) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    write(data / f"a.{kind}", content(kind, 1))
    write(elsewhere / f"c.{kind}", content(kind, 3))
    write(elsewhere / "sub" / "deep" / f"b.{kind}", content(kind, 2))
    (data / f"c.{kind}").symlink_to(elsewhere / f"c.{kind}")
    (data / "sub").symlink_to("../elsewhere/sub")
    source = make_source({kind: str(data)})
    assert ids(source) == [1, 3, 2]
    assert source.notes() == [f"Source {data}: 2 links followed (c.{kind}, sub)."]
    assert ids(make_source({kind: f"{data}/*/*/b.*"})) == [2]
    assert ids(make_source({kind: f"{data}/**/*.{kind}"})) == [1, 3, 2]


def test_a_named_folder_that_is_a_link_is_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "real" / "a.parquet", parquet(1))
    (tmp_path / "data").symlink_to("real")
    listed = list_files(str(tmp_path / "data"), PARQUET, "Parquet")
    assert (listed.names, listed.notes) == ([f"{tmp_path}/data/a.parquet"], [])


def test_a_file_reached_twice_is_read_once_by_the_name_without_a_link(tmp_path: Path) -> None:
    write(tmp_path / "v1" / "a.parquet", parquet(1))
    write(tmp_path / "v2" / "a.parquet", parquet(2))
    (tmp_path / "latest").symlink_to("v2")
    (tmp_path / "b.parquet").symlink_to("v1/a.parquet")
    source = make_source({"parquet": str(tmp_path)})
    assert ids(source) == [1, 2]
    assert [source.place_of(file) for file in source.files()] == ["v1/a.parquet", "v2/a.parquet"]
    assert source.notes() == [
        f"Source {tmp_path}: 2 links followed (b.parquet, latest); "
        "2 files reached twice and read once (b.parquet is v1/a.parquet, latest/a.parquet is v2/a.parquet)."
    ]


def test_of_two_links_to_one_file_the_first_name_is_read(tmp_path: Path) -> None:
    write(tmp_path / "blobs" / "1", parquet(1))
    for name in ("b.parquet", "a.parquet"):
        write(tmp_path / "data" / "c.parquet", parquet(2))
        (tmp_path / "data" / name).symlink_to("../blobs/1")
    assert names(str(tmp_path / "data"), tmp_path) == ["data/a.parquet", "data/c.parquet"]


def test_a_file_below_two_partitions_is_read_for_each(tmp_path: Path) -> None:
    write(tmp_path / "blob", parquet(1))
    for label in (0, 1):
        write(tmp_path / "data" / f"label={label}" / "own.parquet", parquet(5 + label))
        (tmp_path / "data" / f"label={label}" / "a.parquet").symlink_to("../../blob")
    source = make_source({"parquet": str(tmp_path / "data")})
    assert ids(source) == [1, 5, 1, 6]  # which a plan refuses, as ids that appear twice


def test_hard_links_are_files_of_their_own(tmp_path: Path) -> None:
    os.link(write(tmp_path / "a.parquet", parquet(1)), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").symlink_to(write(tmp_path / ".blob", parquet(2)))
    assert names(str(tmp_path), tmp_path) == ["a.parquet", "b.parquet", "c.parquet"]


@pytest.mark.parametrize(
    ("link", "target"), [("data/sub/up", "../../data"), ("data/up", ".."), ("data/sub/to", "../b")]
)
def test_links_in_a_circle_end_in_a_sentence(tmp_path: Path, link: str, target: str) -> None:
    write(tmp_path / "data" / "sub" / "a.parquet", parquet(1))
    write(tmp_path / "data" / "b" / "b.parquet", parquet(2))
    (tmp_path / "data" / "b" / "back").symlink_to("../sub" if link.endswith("to") else "b.parquet")
    (tmp_path / link).symlink_to(target)
    for url in (f"{tmp_path}/data", f"{tmp_path}/data/**/*.parquet"):
        with pytest.raises(SourceError, match=r"' is a link to '.*', the folder that holds it.*by a pattern\.$"):
            list_files(url, PARQUET, "Parquet")
    assert names(f"{tmp_path}/data/sub/*.parquet", tmp_path) == ["data/sub/a.parquet"]


@pytest.mark.parametrize("target", ["gone", "nowhere"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, target: str) -> None:
    write(tmp_path / "a.parquet", parquet(1))
    (tmp_path / "nowhere").symlink_to(target)  # its own name leads round and round
    for url in (str(tmp_path), f"{tmp_path}/*"):
        with pytest.raises(SourceError, match=rf"^'{tmp_path}/nowhere' is a link to '{target}', which is not there"):
            list_files(url, PARQUET, "Parquet")
    assert names(f"{tmp_path}/*.parquet", tmp_path) == ["a.parquet"]


def test_links_below_hidden_names_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", parquet(1))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "up").symlink_to("..")
    (tmp_path / ".#a.parquet").symlink_to("user@host.1234")
    assert names(str(tmp_path), tmp_path) == ["a.parquet"]
    assert names(f"{tmp_path}/**/*.parquet", tmp_path) == ["a.parquet"]


def test_a_folder_that_may_not_be_listed_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", parquet(1))
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for end in ("", "/**"):
        with pytest.raises(SourceError, match=r"secret' cannot be listed: Permission denied\."):
            list_files(f"{tmp_path}{end}", PARQUET, "Parquet")


# Hidden names

HIDDEN = ["_temporary/0/b", ".ipynb_checkpoints/a-checkpoint", "sub/_c", "sub/.d", "sub/_e/f/g"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_hidden_names_are_left_out_at_every_level(folder: Folder, kind: str) -> None:
    for number, name in enumerate(["a", "sub/h", *HIDDEN]):
        folder.write(f"data/{name}.{kind}", content(kind, number))
    folder.write("data/_SUCCESS", b"")
    url = folder.url_of("data")
    source = make_source({kind: url})
    assert ids(source) == [0, 1]
    [note] = source.notes()
    assert note.startswith(
        f"Source {url}: left out: 6 with a name that begins with '_' or '.' (.ipynb_checkpoints, _SUCCESS, "
    )
    pattern = make_source({kind: f"{url}/**/*.{kind}"})
    assert ids(pattern) == [0, 1]
    [note] = pattern.notes()
    assert "left out: 5 with a name that begins with '_' or '.' (.ipynb_checkpoints, _temporary, " in note
    # What is named is read.
    assert ids(make_source({kind: f"{url}/_temporary"})) == [2]
    assert ids(make_source({kind: f"{url}/_temporary/0/b.{kind}"})) == [2]
    assert ids(make_source({kind: f"{url}/_temporary/*/*.{kind}"})) == [2]
    assert ids(make_source({kind: f"{url}/*/_*.{kind}"})) == [4]
    assert ids(make_source({kind: f"{url}/.ipynb*/*"})) == [3]


def test_a_partition_that_begins_with_an_underscore_is_no_hidden_name(tmp_path: Path) -> None:
    write(tmp_path / "_year=2024" / "a.parquet", parquet(1))
    source = make_source({"parquet": str(tmp_path), "columns": {"label": "_year"}})
    assert source.read(source.files()[0], 0, 1).column("label").to_pylist() == [2024]


def test_a_folder_of_hidden_names_alone_says_how_many(tmp_path: Path) -> None:
    write(tmp_path / "_temporary" / "a.parquet", parquet(1))
    write(tmp_path / ".b.parquet", parquet(1))
    with pytest.raises(
        SourceError,
        match=r"^There are no Parquet files at .*\. Left out: 2 with a name that begins .* \(\.b\.parquet, _temporary",
    ):
        list_files(str(tmp_path), PARQUET, "Parquet")


def test_objects_that_stand_for_folders_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = MemoryFileSystem()
    fs.pipe("/markers/data/a.parquet", parquet(1))
    find = MemoryFileSystem.find
    markers = ["/markers/data/", "/markers/data/sub/", "/markers/data/sub_$folder$", "/markers/data/_temporary/"]
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *a, **k: [*markers, *find(*a, **k)])
    listed = list_files("memory://markers/data", PARQUET, "Parquet")
    assert (listed.names, listed.notes) == (["/markers/data/a.parquet"], [])
    monkeypatch.undo()
    fs.rm("/markers", recursive=True)


# Names that hold the signs of a pattern


@pytest.mark.parametrize(
    "kind, name", [("parquet", "a*b"), ("jsonl", "run[1]"), ("parquet", "what?"), ("jsonl", "x]y["), ("parquet", "**")]
)
def test_a_path_that_exists_is_no_pattern(folder: Folder, kind: str, name: str) -> None:
    folder.write(f"{name}/label={name}/c.{kind}", content(kind, 1))
    folder.write(f"{name}/label={name}/{name}.{kind}", content(kind, 2))
    folder.write(f"run1/label=3/c.{kind}", content(kind, 3))
    folder.write(f"aXb/label=3/c.{kind}", content(kind, 4))
    columns = {"label": False}
    url = folder.url_of(name)
    source = make_source({kind: url, "columns": columns})
    assert sorted(ids(source)) == [1, 2]
    assert {source.place_of(file).split("/")[0] for file in source.files()} == {f"label={name}"}
    assert source.left_out() == {}
    assert ids(make_source({kind: f"{url}/label={name}/{name}.{kind}", "columns": columns})) == [2]
    named = make_source({kind: url, "columns": {"label": False, "sample_id": "label", "inputs": ["x"]}})
    assert ids(named) == [name, name]
    again = make_source(named.to_dict())  # as an actor has it
    assert again.read(named.files()[0], 0, 1).column("sample_id").to_pylist() == [name]


# Endings


def test_endings_of_a_folder_are_said_with_counts(folder: Folder) -> None:
    for number, name in enumerate(["a.parquet", "b.parq", "c.pq", "D.PARQUET"]):
        folder.write(f"data/{name}", parquet(number))
    for name in ("c.json", "d.json", "README.md", "part-00000", "e.jsonl.gz"):
        folder.write(f"data/sub/{name}", b"")
    source = make_source({"parquet": folder.url_of("data")})
    assert sorted(ids(source)) == [0, 1, 2, 3]
    [note] = source.notes()
    assert "left out: 5 files of another ending than .parquet, .pq or .parq (2 .json, " in note
    assert all(text in note for text in ("1 .md", "1 without an ending", "1 .jsonl.gz"))


@pytest.mark.parametrize(
    ("name", "pattern"), [("part-0.json", "*.json"), ("sub/c.json.gz", "**/*.json.gz"), ("0_0", "*")]
)
def test_where_no_ending_counts_the_pattern_to_name_them_by_is_told(tmp_path: Path, name: str, pattern: str) -> None:
    import gzip

    data = b'{"sample_id": 1, "x": 1}\n'
    write(tmp_path / "run[1]" / name, gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(
        SourceError, match=r"Left out: 1 file of another .* count that end in \.jsonl or \.nd"
    ) as refused:
        make_source({"jsonl": str(tmp_path / "run[1]")}).files()
    told = str(refused.value).rpartition(": '")[2].removesuffix("'.")
    assert told == f"{tmp_path}/run[[]1]/{pattern}"
    assert ids(make_source({"jsonl": told})) == [1]
    assert ids(make_source({"jsonl": str(tmp_path / "run[1]" / name)})) == [1]


def test_folders_that_a_pattern_matches_are_read_as_folders(folder: Folder) -> None:
    folder.write("data/a.parquet/part-0.parquet", parquet(1))
    folder.write("data/a.parquet/_SUCCESS", b"")
    folder.write("data/a.parquet/sub/part-1.parquet", parquet(2))
    folder.write("data/b.parquet", parquet(3))
    folder.write("data/_c.parquet/part-0.parquet", parquet(4))
    assert ids(make_source({"parquet": folder.url_of("data/*.parquet")})) == [1, 2, 3]
    assert ids(make_source({"parquet": folder.url_of("data/**")})) == [1, 2, 3]


# One document


def test_a_json_file_of_lines_is_read_where_it_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'\xef\xbb\xbf{"sample_id": 1, "x": 1}\n{"sample_id": 2, "x": 1}\n')
    assert ids(make_source({"jsonl": str(path)})) == [1, 2]


ROWS = [{"sample_id": 1, "x": [1, 2]}, {"sample_id": 2, "x": [3, 4]}]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("document", [ROWS, {"version": 1, "KEY": ROWS}], ids=["array", "object"])
def test_one_document_is_refused_with_a_command_that_makes_lines(
    tmp_path: Path, document: Any, indent: int | None, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    text = json.dumps(document, indent=indent).encode()
    path = write(tmp_path / f"my data.json{'.gz' if packed else ''}", gzip.compress(text) if packed else text)
    source = make_source({"jsonl": str(path)})
    if isinstance(document, dict) and indent is None:
        assert source.files()[0].rows == 1  # one object on one line is a row
        return
    with pytest.raises(SourceError, match=r"line 1, is no JSON.*If it is one JSON document") as refused:
        source.files()
    command = str(refused.value).partition("as lines: ")[2].replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert ids(make_source({"jsonl": str(tmp_path / "my data-lines.jsonl")})) == [1, 2]


def test_an_array_on_one_line_is_refused_at_its_first_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.sources.json_lines.CHUNK", 8)
    path, given = write(tmp_path / "a.json", json.dumps(ROWS * 100).encode()), list[bytes]()
    refuse = json_lines._refuse_array

    def watched(name: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
        return refuse(name, (given.append(piece) or piece for piece in pieces))

    monkeypatch.setattr(json_lines, "_refuse_array", watched)
    with pytest.raises(SourceError, match="begins an array"):
        make_source({"jsonl": str(path)}).files()
    assert len(given) == 1


@pytest.mark.parametrize(("log", "kind"), [("_delta_log", "Delta Lake"), (".hoodie", "Hudi")])
def test_a_table_whose_log_says_which_files_count_is_refused(tmp_path: Path, log: str, kind: str) -> None:
    (tmp_path / log).mkdir()
    (tmp_path / "a.parquet").touch()
    with pytest.raises(SourceError, match=f"is a {kind} table: it holds {log}"):
        list_files(str(tmp_path), (".parquet", ".pq"), "Parquet")
    assert list_files(f"{tmp_path}/*.parquet", (".parquet", ".pq"), "Parquet").names == [f"{tmp_path}/a.parquet"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_beside_its_compressed_form_is_refused(tmp_path: Path, ending: str) -> None:
    """As `gzip -k` leaves them: packed documents would be read twice."""
    for name in ("a.jsonl", f"a.jsonl{ending}", "b.jsonl"):
        (tmp_path / name).touch()
    endings = (".jsonl", f".jsonl{ending}")
    with pytest.raises(SourceError, match=rf"has both '.*/a\.jsonl' and '.*/a\.jsonl\{ending}'"):
        list_files(str(tmp_path), endings, "JSONL")
    found = list_files(f"{tmp_path}/*.jsonl", endings, "JSONL").names
    assert found == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"]
