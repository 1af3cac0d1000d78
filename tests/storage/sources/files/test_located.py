"""A file is read as it is now, however alike the one was that it took the place of."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from storage.base.errors import SourceError, StoreError, StoreLost, VerificationError
from storage.objectstore.folder import Folder
from storage.sources import Source, make_source
from storage.sources.files.located import reading, version_of
from tests.servers import FileServer


def content(kind: str, first: int) -> bytes:
    """A file of 10 rows; of the same size for every `first` below 10."""
    rows = {"sample_id": [str(n + first) for n in range(10, 20)], "x": [first] * 10}
    if kind == "jsonl":
        lines = [json.dumps(row) for row in pa.table(rows).to_pylist()]
        lines[first] += " " * 40  # the lines behind it begin elsewhere
        return "".join(f"{line}\n" for line in lines).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(rows), sink, compression="none", use_dictionary=False, row_group_size=4)
    return sink.getvalue().to_pybytes()


KINDS = ["parquet", "jsonl"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_the_same_size_is_read_anew_behind_every_url(folder: Folder, kind: str) -> None:
    source: Source = make_source({kind: folder.url_of(f"data/a.{kind}")})
    sizes: set[int] = set()
    for first in (0, 1, 2, 3):
        data = content(kind, first)
        sizes.add(len(data))
        folder.write(f"data/a.{kind}", data)
        [file] = source.files()
        assert source.read(file, 4, 7).column("x").to_pylist() == [first] * 3
        assert source.read(file, 5, 8).column("sample_id").to_pylist() == [str(n + first) for n in range(15, 18)]
        assert source.ids(file).to_pylist() == [str(n + first) for n in range(10, 20)]
    assert len(sizes) == 1


def in_place(path: Path, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(data)


def with_the_old_times(path: Path, data: bytes) -> None:
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def by_a_rename(path: Path, data: bytes) -> None:
    times = path.stat()
    path.with_suffix(".new").write_bytes(data)
    shutil.copystat(path, path.with_suffix(".new"))
    os.utime(path.with_suffix(".new"), ns=(times.st_atime_ns, times.st_mtime_ns))
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [Path.write_bytes, in_place, with_the_old_times, by_a_rename])
def test_a_local_file_is_read_anew_however_it_was_written(
    tmp_path: Path, kind: str, change: Callable[[Path, bytes], Any]
) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content(kind, 0))
    source: Source = make_source({kind: str(path)})
    [file] = source.files()
    for first in range(1, 9):
        change(path, content(kind, first))
        assert source.read(file, 0, 10).column("x").to_pylist() == [first] * 10


@pytest.mark.parametrize("kind", KINDS)
def test_documents_that_changed_are_packed_anew(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    source = make_source({kind: str(path), "pack": {"column": "tokens", "sequence_length": 3}})
    for token in (4, 5):
        table = pa.table({"tokens": [[token, 2, 3, token]]})
        if kind == "parquet":
            pq.write_table(table, path, compression="none", use_dictionary=False)
        else:
            path.write_text(json.dumps(table.to_pylist()[0]) + "\n")
        [file] = source.files()
        row = source.read(file, 0, 1)
        assert row.column("input_ids").to_pylist()[0][:4] == token.to_bytes(4, "little")


def test_a_file_that_stays_is_looked_at_once_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    real = LocalFileSystem.info
    for kind in KINDS:
        path = tmp_path / f"a.{kind}"
        path.write_bytes(content(kind, 0))
        os.utime(path, (1, 1))
        source: Source = make_source({kind: str(path)})
        [file] = source.files()
        version_of(LocalFileSystem(), str(path))  # the time of its inode lies back by now
        source.read(file, 0, 1)
        monkeypatch.setattr(LocalFileSystem, "info", lambda *a, **k: looks.append("") or real(*a, **k))
        source.read(file, 1, 2)
        assert len(looks) == 1
        looks.clear()
        monkeypatch.undo()


class Web:
    """A file system that says less than others of its files."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def info(self, name: str) -> dict[str, Any]:
        return {"name": name, "size": 3, **self.facts}


def test_where_nothing_names_a_version_every_look_finds_another() -> None:
    assert version_of(Web(), "a") != version_of(Web(), "a")
    assert version_of(Web(ETag=None), "a") != version_of(Web(ETag=None), "a")
    assert version_of(Web(ETag="x"), "a") == version_of(Web(ETag="x"), "a") != version_of(Web(ETag="y"), "a")
    old = "Wed, 21 Oct 2015 07:28:00 GMT"
    assert version_of(Web(**{"Last-Modified": old}), "a") == version_of(Web(**{"Last-Modified": old}), "a")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_breaks_while_it_is_read_has_changed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content(kind, 0))
    fs = LocalFileSystem()
    with pytest.raises(SourceError, match="cannot be read: torn"), reading(fs, str(path), kind):
        raise OSError("torn")
    with pytest.raises(VerificationError, match=r"was written while it was read\..*torn"), reading(fs, str(path), kind):
        path.write_bytes(content(kind, 1))
        raise OSError("torn")


@pytest.mark.parametrize("fault", ["cut", "lost", "refused"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_connection_is_never_blamed_on_the_source(kind: str, fault: str) -> None:
    server = FileServer({f"/a.{kind}": content(kind, 1)})
    try:

        def read() -> list[str]:
            source: Source = make_source({kind: f"{server.url}/a.{kind}"})
            [file] = source.files()
            assert source.left_out() == {}
            return [*source.read(file, 0, 5).column("sample_id").to_pylist(), *source.ids(file).to_pylist()[5:]]

        server.fail_after(0, "")
        assert read() == [str(n + 1) for n in range(10, 20)]
        requests, failed = server.asked, 0
        for answers in range(requests):
            server.fail_after(answers, fault)
            try:
                read()
            except StoreLost as error:
                assert f"/a.{kind} did not answer as a store does: " in str(error)
                failed += 1
        # fsspec looks at the headers only of some answers.
        assert failed == requests if fault != "cut" else failed >= requests // 2
    finally:
        server.close()


def test_a_file_that_is_not_there_is_one_behind_http_too() -> None:
    server = FileServer({})
    try:
        with pytest.raises(SourceError, match=r"There are no JSONL files at 'http://.*/a\.jsonl'"):
            make_source({"jsonl": f"{server.url}/a.jsonl"}).files()
    finally:
        server.close()


@pytest.mark.parametrize("url", ["s3://", "a/**b.parquet", "zip://a.parquet::README.md"])
def test_a_url_whose_files_cannot_be_listed_is_one(url: str) -> None:
    with pytest.raises(SourceError, match=r"cannot be (listed|opened): .*\. A source is"):
        make_source({"parquet": url}).files()


def test_a_url_that_is_none_is_one() -> None:
    with pytest.raises(StoreError, match=r"^'http://\[' cannot be used: Invalid IPv6 URL\. "):
        make_source({"parquet": "http://[::1"}).files()


def test_a_server_that_gives_no_parts_of_a_file_is_one() -> None:
    server = FileServer({"/a.parquet": content("parquet", 1) + bytes(6 << 20)}, ranges=False)
    try:
        with pytest.raises(
            SourceError, match=r"/a\.parquet' cannot be read: The HTTP server doesn't appear to support"
        ):
            make_source({"parquet": f"{server.url}/a.parquet"}).files()
    finally:
        server.close()
