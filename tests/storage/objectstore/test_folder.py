"""What every folder promises, on each kind of file system that a store is written to."""

from __future__ import annotations

import errno
import os
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage.base.errors import StoreError, StoreFull, StoreLost
from storage.objectstore.clock import store_now
from storage.objectstore.folder import Folder, open_url
from storage.objectstore.listing import Entry, entry_of
from storage.objectstore.preparation import prepare_folder
from tests.storage.helpers import files, race


def test_create_makes_a_file_once_and_never_overwrites_it(folder: Folder) -> None:
    assert folder.create("a/b.json", b"first") is True
    assert folder.create("a/b.json", b"second") is False
    assert folder.create("a/b.json", b"first") is False
    assert folder.read("a/b.json") == b"first"


@pytest.mark.parametrize("data", [b"", b"\x00\xff" * 70_000])
def test_what_was_created_is_read_back_whole(folder: Folder, data: bytes) -> None:
    assert folder.create("file", data)
    assert folder.read("file") == data
    assert folder.size("file") == len(data)
    with folder.open("file") as file:
        assert file.read() == data
    with open_url(folder.url_of("file")) as file:
        assert file.read() == data


def test_of_fifty_that_race_to_create_one_wins_and_its_content_is_whole(folder: Folder) -> None:
    contents = [bytes([index]) * 20_000 for index in range(50)]
    answers = race(50, lambda index: folder.create("prize", contents[index]))
    assert sorted(map(str, answers)) == ["False"] * 49 + ["True"]
    assert folder.read("prize") == contents[answers.index(True)]
    assert folder.names("tmp") == []


def test_in_memory_nobody_comes_between_the_look_and_the_put(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Folder(f"memory://{uuid.uuid4().hex}")
    really = store._fs.exists

    def exists(path: str) -> bool:
        there = really(path)
        time.sleep(0.001)
        return there

    monkeypatch.setattr(store._fs, "exists", exists)
    answers = race(10, lambda index: store.create("prize", bytes([index])))
    assert sorted(answers) == [False] * 9 + [True]
    assert store.read("prize") == bytes([answers.index(True)])
    store.remove("prize")


def test_create_leaves_no_staged_file_whether_it_wins_or_loses(folder: Folder) -> None:
    folder.create("x", b"1")
    folder.create("x", b"2")
    assert folder.names("tmp") == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_create_keeps_its_promise_where_there_are_no_hard_links(
    local: Folder, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    answers = race(20, lambda index: local.create("a/prize", bytes([index]) * 1000))
    assert sorted(map(str, answers)) == ["False"] * 19 + ["True"]
    assert local.read("a/prize") == bytes([answers.index(True)]) * 1000


def test_a_put_that_fails_halfway_without_hard_links_leaves_its_name_free(
    local: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    calls: list[int] = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 1:  # of the staged file
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFull, match=r"record is full: no space left\. What was committed stays"):
        local.create("record", b"0123456789")
    assert not local.exists("record")


def test_another_failure_of_a_hard_link_is_not_swallowed(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="the disk is broken"):
        local.create("x", b"1")
    assert local.names("tmp") == []
    assert not local.exists("x")


def test_write_overwrites(folder: Folder) -> None:
    folder.write("names/digits", b"a long first content")
    folder.write("names/digits", b"short")
    assert folder.read("names/digits") == b"short"
    assert folder.names("tmp") == []


@pytest.mark.parametrize(
    "start, stop, found", [(0, 10, b"0123456789"), (0, 1, b"0"), (3, 7, b"3456"), (8, 99, b"89"), (4, 4, b"")]
)
def test_a_range_is_those_bytes_and_fewer_at_the_end(folder: Folder, start: int, stop: int, found: bytes) -> None:
    folder.write("digits", b"0123456789")
    assert folder.read_range("digits", start, stop) == found


def test_what_is_not_there_is_not_found(folder: Folder) -> None:
    folder.write("other", b"")
    assert not folder.exists("no/file")
    for read in (folder.read, folder.open, folder.size, lambda path: folder.read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("no/file")


def test_names_are_sorted_and_without_their_folder(folder: Folder) -> None:
    for path in ("b", "a", "c/inner", "ab"):
        folder.create(path, b"")
    assert [name for name in folder.names() if name != "tmp"] == ["a", "ab", "b", "c"]
    assert folder.names("c") == ["inner"]
    assert folder.names("no/such") == []


def test_names_tells_of_a_file_that_came_after_the_last_look(folder: Folder) -> None:
    folder.create("a/1", b"")
    assert folder.names("a") == ["1"]
    Folder(folder.url).create("a/2", b"")
    assert folder.names("a") == ["1", "2"]


def test_nothing_is_inside_a_file(folder: Folder) -> None:
    folder.create("file", b"")
    assert folder.names("file") == []


def test_removing_what_is_missing_is_silent(folder: Folder) -> None:
    folder.create("a/x", b"")
    folder.remove("a/x")
    assert not folder.exists("a/x")
    folder.remove("a/x")
    folder.remove("never/was")


def test_removing_a_folder_removes_what_it_holds_and_nothing_else(folder: Folder) -> None:
    for path in ("a/x", "a/b/y", "ab", "c"):
        folder.create(path, b"")
    folder.remove("a")
    assert [folder.exists(path) for path in ("a/x", "a/b/y", "ab", "c")] == [False, False, True, True]
    # SeaweedFS keeps empty folders, which S3 itself does not know.
    assert folder.protocol == "s3" or not folder.exists("a")


def test_a_removed_file_can_be_created_again(folder: Folder) -> None:
    folder.create("x", b"1")
    folder.remove("x")
    assert folder.create("x", b"2") is True


def test_publish_gives_a_staged_file_its_name_and_leaves_none_behind(folder: Folder) -> None:
    staged = folder.stage()
    staged.write_bytes(b"a shard")
    folder.publish(staged, "shards/aa/x.parquet")
    assert folder.read("shards/aa/x.parquet") == b"a shard"
    assert not staged.exists()


def test_publish_over_a_file_is_refused_and_leaves_that_file_alone(folder: Folder) -> None:
    folder.create("x", b"first")
    staged = folder.stage()
    staged.write_bytes(b"second")
    with pytest.raises(StoreError, match="exists already"):
        folder.publish(staged, "x")
    assert folder.read("x") == b"first"
    assert not staged.exists()


def test_every_staged_path_is_new(folder: Folder) -> None:
    assert len({folder.stage() for _ in range(20)}) == 20


def test_a_local_file_is_staged_on_the_disk_of_its_store(local: Folder) -> None:
    assert Path(local.url) in local.stage().parents


@pytest.mark.parametrize("path", ["/etc/passwd", "..", "../x", "a/../../x", "a/..", "memory://x/y", "file:///x"])
def test_a_path_that_leads_out_is_refused(folder: Folder, path: str) -> None:
    for call in (
        folder.exists,
        folder.read,
        folder.names,
        folder.remove,
        folder.open,
        lambda path: folder.create(path, b""),
        lambda path: folder.write(path, b""),
    ):
        with pytest.raises(StoreError, match="leads out of"):
            call(path)


def test_a_name_with_two_dots_inside_is_no_way_out(folder: Folder) -> None:
    assert folder.create("a..b/c..", b"")


def test_a_folder_opened_again_by_its_url_is_the_same(folder: Folder) -> None:
    folder.create("x", b"1")
    again = Folder(folder.url)
    assert (again.url, again.read("x")) == (folder.url, b"1")
    assert Folder(f"{folder.url}/").url == folder.url


def test_prepare_makes_the_folder_and_leaves_nothing_to_read(folder: Folder) -> None:
    prepare_folder(folder)
    prepare_folder(folder)
    assert folder.names("tmp") == []
    assert set(folder.names()) <= {"tmp"}
    assert folder.protocol == "memory" or folder.exists()


def test_a_place_that_nobody_may_write_is_refused_in_a_sentence() -> None:
    with pytest.raises(StoreError, match=r"^/proc/store cannot be written: .*\. Choose another store"):
        prepare_folder(Folder("/proc/store"))


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Folder("store")
    assert made.url == str(tmp_path / "store")
    assert Folder(f"file://{tmp_path}/store").url == made.url


@pytest.mark.parametrize("path", ["file", "file/store", "file/a/b"])
def test_a_store_inside_a_file_is_refused_in_a_sentence(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"^.*/file.* cannot be written: .*\. A job needs .*\. Choose another"):
        prepare_folder(Folder(str(tmp_path / path)))
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize("url", ["nonsense://bucket/store", "noprotocol9://x"])
def test_an_unknown_protocol_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(StoreError, match=rf"^'{url}' cannot be opened: .*\. A store is a folder URL"):
        Folder(url)


@pytest.mark.parametrize("path", ["", ".", "./"])
def test_a_folder_does_not_remove_itself(folder: Folder, path: str) -> None:
    folder.create("kept", b"1")
    with pytest.raises(StoreError, match="is all of"):
        folder.remove(path)
    assert folder.read("kept") == b"1"


# Listings


def test_entries_are_the_files_inside_with_their_sizes_and_dates(folder: Folder) -> None:
    before = store_now(folder)
    for path, data in (("a/y", b"22"), ("a/x", b"1"), ("a/b/z", b"333"), ("ab", b"")):
        folder.write(path, data)
    found = folder.entries("a")
    assert [(entry.name, entry.bytes) for entry in found] == [("x", 1), ("y", 2)]
    for entry in found:
        # Some servers tell whole seconds.
        assert entry.modified is not None and before - 2 < entry.modified < time.time() + 2
    assert folder.entries("no/such") == folder.entries("a/x") == []
    assert [[e.name for e in entries] for entries in folder.entries_of(["a/b", "no", "a"])] == [["z"], [], ["x", "y"]]


def test_a_date_is_understood_however_a_file_system_tells_it() -> None:
    when = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    for told in (
        {"mtime": when.timestamp()},
        {"LastModified": when},
        {"updated": "2024-05-06T07:08:09Z"},
        {"last_modified": when},
        {"created": when.timestamp()},
        {"mtime": when.timestamp(), "created": 0.0},
    ):
        assert entry_of("x", {"size": 1, "type": "file", **told}) == Entry("x", 1, when.timestamp())
    assert entry_of("x", {"size": 1, "type": "file", "LastModified": ""}) == Entry("x", 1, None)
    assert entry_of("x", {"size": 1, "type": "file"}) == Entry("x", 1, None)
    assert entry_of("x", {"size": 0, "type": "directory"}) is None


def test_the_folders_clock_is_that_of_its_files_and_leaves_nothing(folder: Folder) -> None:
    assert abs(store_now(folder) - time.time()) < 5
    assert files(folder) == []


def test_a_clock_that_tells_no_time_is_this_machines(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.objectstore.listing._modified", lambda info: None)
    assert abs(store_now(folder) - time.time()) < 5
    assert files(folder) == []


def test_many_files_are_read_and_removed_at_once_and_one_that_is_gone_is_no_matter(folder: Folder) -> None:
    paths = [f"a/{index}" for index in range(70)]
    for path in paths:
        folder.write(path, path.encode())
    asked = [*paths[:40], "a/none", *paths[40:]]
    assert list(folder.read_some(asked)) == [path.encode() if path in paths else None for path in asked]
    folder.remove_files(["a/none", *paths[1:]])
    assert files(folder) == ["a/0"]
    folder.remove_files([])


def test_a_range_past_the_end_is_empty(folder: Folder) -> None:
    folder.write("digits", b"0123456789")
    assert folder.read_range("digits", 10, 20) == b"" == folder.read_range("digits", 400, 500)


def test_a_published_file_that_arrived_in_part_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(f"memory://{uuid.uuid4().hex}")
    really = folder._fs.put_file

    def put_file(source: str, path: str) -> None:
        really(source, path)
        folder._fs.pipe_file(path, b"a sh")

    monkeypatch.setattr(folder._fs, "put_file", put_file)
    staged = folder.stage()
    staged.write_bytes(b"a shard")
    with pytest.raises(StoreLost, match=r"x has 4 bytes\. 7 bytes were put there"):
        folder.publish(staged, "x")
    assert not staged.exists()


def test_a_local_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "my data #1 100% ä?&+ %41 [x] *{y} a::b @c=d; :e'\"$HOME\\|~^`\n"
    monkeypatch.chdir(tmp_path)
    for url in (f"{tmp_path}/{name}", name, f"./{name}", f"file://{tmp_path}/{name}"):
        folder = Folder(url)
        assert folder.url == f"{tmp_path}/{name}"
        assert folder.create(f"{name}/x", b"1") and not folder.create(f"{name}/x", b"2")
        folder.write(f"{name}/y", b"22")
        assert folder.names(name) == ["x", "y"] and folder.size(f"{name}/y") == 2
        assert folder.read_range(f"{name}/y", 1, 2) == b"2" and folder.open(f"{name}/x").read() == b"1"
        assert Folder(folder.url_of(name)).exists("x")
        folder.remove_files([f"{name}/x"])
        assert folder.names(name) == ["y"]
        folder.remove(name)
        assert not folder.exists(name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
