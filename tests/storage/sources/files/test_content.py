"""Compressed lines: read from the middle, unpacked once in a process, and the same samples as without compression."""

from __future__ import annotations

import errno
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from storage.base.errors import SourceError, VerificationError
from storage.objectstore.folder import Folder
from storage.samples.rows_digest import rows_digest
from storage.sources import Source, make_source
from storage.sources.files import content
from storage.sources.files.compression import COMPRESSED_ENDINGS, decompress
from tests.storage.sources.files.test_compression import COMPRESS

ROWS = 50


@pytest.fixture(autouse=True)
def unpacked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the files that were unpacked, in order; in a process that has unpacked none before."""
    names = list[str]()

    def watched(name: str, handle: Any, kind: str) -> Any:
        names.append(name.rpartition("/")[2])
        return decompress(name, handle, kind)

    monkeypatch.setattr(content, "decompress", watched)
    fresh = content._Unpacked()
    monkeypatch.setattr(content, "_unpacked", fresh)
    yield names
    fresh._drop_all()


def text(first: int = 0, rows: int = ROWS) -> bytes:
    lines = [json.dumps({"sample_id": n, "x": [n, 0.5], "text": "w" * n}) for n in range(first, first + rows)]
    return "\n\n".join(lines).encode()


def source_of(url: str, **columns: Any) -> Source:
    return make_source({"jsonl": url, "columns": {"inputs": ["x"], **columns}})


def ids(source: Source) -> list[Any]:
    return [one for file in source.files() for one in source.ids(file).to_pylist()]


@pytest.mark.parametrize("ending", COMPRESSED_ENDINGS)
def test_compressed_lines_are_the_same_samples(folder: Folder, ending: str, unpacked: list[str]) -> None:
    compress = COMPRESS[COMPRESSED_ENDINGS[ending]]
    folder.write("plain/a.jsonl", text())
    folder.write(f"packed/a.jsonl{ending}", compress(text(0, 20)) + compress(b"\n" + text(20, ROWS - 20)))
    plain, packed = source_of(folder.url_of("plain")), source_of(folder.url_of("packed"))
    [a], [b] = plain.files(), packed.files()
    assert a.rows == b.rows == ROWS
    for start, stop in ((0, ROWS), (0, 1), (17, 23), (ROWS - 1, ROWS)):
        assert packed.read(b, start, stop).equals(plain.read(a, start, stop))
        assert rows_digest(packed.read(b, start, stop)) == rows_digest(plain.read(a, start, stop))
    assert packed.ids(b) == plain.ids(a)
    assert unpacked == [f"a.jsonl{ending}"]


def test_documents_are_packed_out_of_compressed_lines(tmp_path: Path) -> None:
    rows = [{"doc": list(range(1, 2 + n))} for n in range(ROWS)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.zst").write_bytes(COMPRESS["zstd"](lines))
    pack = {"column": "doc", "sequence_length": 8, "block_documents": 16}
    plain, packed = (make_source({"jsonl": str(tmp_path / n), "pack": pack}) for n in ("a.jsonl", "b.jsonl.zst"))
    for a, b in zip(plain.files(), packed.files(), strict=True):
        assert a.rows == b.rows
        table = plain.read(a, 0, a.rows)
        assert packed.read(b, 0, b.rows).select(["input_ids", "label"]).equals(table.select(["input_ids", "label"]))
    assert packed.ids(packed.files()[0])[0].as_py().startswith("b.jsonl.zst:0:")


def test_a_compressed_file_without_the_ending_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "part-0").write_bytes(COMPRESS["gzip"](text()))
    assert ids(source_of(str(tmp_path / "part-0"))) == list(range(ROWS))


def test_a_broken_line_is_named_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(COMPRESS["gzip"](text() + b"\n{\n"))
    source = make_source({"jsonl": str(tmp_path)})
    with pytest.raises(SourceError, match=rf"a\.jsonl\.gz, line {2 * ROWS}, is no JSON"):
        source.read(source.files()[0], ROWS, ROWS + 1)


def test_a_file_that_is_not_whole_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(COMPRESS["gzip"](text()))
    (tmp_path / "b.jsonl.gz").write_bytes(COMPRESS["gzip"](text(100))[:-9])
    with pytest.raises(SourceError, match=rf"^'{tmp_path}/b\.jsonl\.gz' ends in the middle"):
        source_of(str(tmp_path)).files()
    (tmp_path / "b.jsonl.gz").write_bytes(COMPRESS["gzip"](text(100)))
    assert ids(source_of(str(tmp_path))) == [*range(ROWS), *range(100, 100 + ROWS)]


def test_a_file_is_unpacked_once_and_again_when_it_changes(tmp_path: Path, unpacked: list[str]) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(COMPRESS["gzip"](text()))
    source = source_of(str(path))
    for start in range(0, ROWS, 10):
        source.read(source.files()[0], start, start + 10)
        source_of(str(path)).read(source.files()[0], start, start + 10)  # another source of the same process
    assert len(unpacked) == 1
    path.write_bytes(COMPRESS["gzip"](text(7)))
    assert source.read(source.files()[0], 0, 2).column("sample_id").to_pylist() == [7, 8]
    assert len(unpacked) == 2
    assert content._unpacked._end == len(text(7))  # the room of the earlier version is given back


def test_a_file_that_changes_while_it_is_unpacked_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(COMPRESS["gzip"](text()))

    def cut(name: str, handle: Any, kind: str) -> Any:
        path.write_bytes(path.read_bytes()[:-20])
        return decompress(name, handle, kind)

    monkeypatch.setattr(content, "decompress", cut)
    with pytest.raises(VerificationError, match="was written while it was read"):
        source_of(str(path)).files()


def test_threads_read_the_same_file_at_once(tmp_path: Path, unpacked: list[str]) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl.gz").write_bytes(COMPRESS["gzip"](text(ord(name))))
    source = source_of(str(tmp_path))
    files = source.files()

    def read(row: int) -> list[Any]:
        return [source.read(file, row, row + 1).column("sample_id").to_pylist() for file in files]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(ROWS))) == [[[row + ord("a")], [row + ord("b")]] for row in range(ROWS)]
    assert len(unpacked) == 2


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (tmp_path / "a.jsonl.gz").write_bytes(COMPRESS["gzip"](text()))
    assert ids(source_of(str(tmp_path / "a.jsonl.gz"))) == list(range(ROWS))
    assert os.listdir(temporary) == []


def in_a_child(call: Callable[[], Any]) -> Any:
    """What a call gives in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, pickle.dumps(call()))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        found = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    return found


def test_a_forked_process_writes_to_a_file_of_its_own(tmp_path: Path, unpacked: list[str]) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl.gz").write_bytes(COMPRESS["gzip"](text(ord(name))))
    a, b, c = (source_of(str(tmp_path / f"{name}.jsonl.gz")) for name in "abc")
    os.register_at_fork(after_in_child=content._unpacked.after_fork)
    ids(a)
    before = content._unpacked._end
    assert in_a_child(lambda: [ids(a), ids(b), ids(a), unpacked]) == [
        list(range(ord("a"), ord("a") + ROWS)),
        list(range(ord("b"), ord("b") + ROWS)),
        list(range(ord("a"), ord("a") + ROWS)),
        ["a.jsonl.gz", "b.jsonl.gz"],  # the parent's is not unpacked again
    ]
    [descriptor] = content._unpacked._descriptors
    assert os.fstat(descriptor).st_size == before
    assert ids(c) == list(range(ord("c"), ord("c") + ROWS))
    assert in_a_child(lambda: [ids(c), ids(a)]) == [ids(c), ids(a)]


def test_a_source_that_goes_to_another_process_reads_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(COMPRESS["gzip"](text()))
    source = source_of(str(tmp_path))
    expected = ids(source)
    other = pickle.loads(pickle.dumps(source))
    content._unpacked._drop_all()
    assert ids(other) == expected


@pytest.mark.parametrize("room", [0, 10])
def test_what_takes_more_room_than_is_left_is_unpacked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unpacked: list[str], caplog: pytest.LogCaptureFixture, room: int
) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl.gz").write_bytes(COMPRESS["gzip"](text(ord(name))))
    usage = content.shutil.disk_usage("/")._replace(free=room * len(text(ord("a"))))
    monkeypatch.setattr(content.shutil, "disk_usage", lambda path: usage)
    source = source_of(str(tmp_path))
    files = source.files()
    for file in files:
        assert source.read(file, 3, 4).column("sample_id").to_pylist() == [ord(file.name[-10]) + 3]
    assert len(content._unpacked._places) == (3 if room else 1)
    assert len(unpacked) == (3 if room else 6)
    assert ("more space than is left in" in caplog.text) == (not room)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl.gz").write_bytes(COMPRESS["gzip"](text()))
    source = source_of(str(tmp_path))
    pwrite, limit = os.pwrite, len(text()) + 10

    def full(descriptor: int, data: bytes, at: int) -> int:
        if at + len(data) > limit:
            raise OSError(code, os.strerror(code))
        return pwrite(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    assert [file.rows for file in source.files()] == [ROWS, ROWS]  # the first gives way to the second
    limit = len(text()) - 1
    with pytest.raises(
        SourceError, match=rf"a\.jsonl\.gz' cannot be unpacked into .*{os.strerror(code)} after .* bytes\..*TMPDIR"
    ):
        source_of(str(tmp_path)).files()
    assert content._unpacked._places == {}


def test_a_temporary_folder_that_is_not_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(COMPRESS["gzip"](text()))
    monkeypatch.setattr(content.tempfile, "mkstemp", lambda **_: (_ for _ in ()).throw(OSError(30, "Read-only")))
    with pytest.raises(SourceError, match=r"cannot be unpacked into .*Read-only after 0 bytes"):
        source_of(str(tmp_path)).files()
