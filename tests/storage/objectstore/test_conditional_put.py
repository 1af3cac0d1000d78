"""Put-if-absent: whether a server keeps it is found out by a race, and what stands in where it is not kept."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from storage.base.errors import StoreLost
from storage.objectstore import conditional_put
from storage.objectstore.conditional_put import keeps_promise, put_alone, put_if_absent
from storage.objectstore.folder import Folder
from storage.objectstore.staging import remove_dead_stages
from tests.storage.helpers import files, label, race

# The probe


def test_the_probe_finds_that_a_server_keeps_the_promise_and_leaves_nothing(bucket: str) -> None:
    store = Folder(f"s3://{bucket}/probed")
    assert store.keeps_create is True
    assert files(store) == []


def test_the_probe_finds_that_a_server_ignores_the_condition_and_leaves_nothing(
    careless: Folder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert careless.keeps_create is False
    careless.write("kept", b"")
    # The server's disk is looked at, not its listing: after racing puts rclone may list a file that is gone.
    own = careless.url.rpartition("/")[2]
    left = [
        path for path in tmp_path_factory.getbasetemp().glob(f"rclone[0-9]*/data/bucket/{own}/**/*") if path.is_file()
    ]
    assert [path.name for path in left] == ["kept"]


def test_without_the_probe_everyone_who_races_on_a_careless_server_would_win(careless: Folder) -> None:
    careless.__dict__["keeps_create"] = True
    assert race(10, lambda index: careless.create("prize", bytes([index]))) == [True] * 10


def test_on_a_careless_server_create_holds_within_one_process(careless: Folder) -> None:
    answers = race(10, lambda index: careless.create("prize", bytes([index])))
    assert sorted(answers) == [False] * 9 + [True]
    assert careless.read("prize") == bytes([answers.index(True)])
    assert careless.create("prize", b"late") is False


def test_one_process_can_work_on_a_careless_server(careless: Folder) -> None:
    computed, cache = label(careless)
    assert len(computed) == 2
    again, same = label(careless)
    assert (again, same.digest) == (set(), cache.digest)


def test_a_disk_and_memory_are_known_and_not_probed(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.objectstore.folder.keeps_promise", None)
    assert local.keeps_create and Folder("memory://probed").keeps_create


class Sync(MemoryFileSystem):
    """A file system of fsspec's generic kind: it looks whether a file is there, and puts it then."""

    cachable, store, pseudo_dirs = False, {}, [""]
    pipe_file = AbstractFileSystem.pipe_file


def test_fsspecs_own_stand_in_is_no_promise_however_the_race_would_end() -> None:
    assert keeps_promise(Sync(), "/tmp") is False
    assert Sync.store == {}


class Conditional(MemoryFileSystem):
    """A server with conditional puts, whose answers `answer(nth call)` may replace by a failure."""

    cachable, async_impl = False, True

    def __init__(self, answer: Any = None) -> None:
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self.answer, self.calls = answer, 0

    def exists(self, path: str, **_: Any) -> bool:
        there = path in self.store
        time.sleep(0.002)  # on its way back
        return there

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self.calls += 1
        if self.answer is not None:
            self.answer(self.calls)
        if mode == "create" and self.store.setdefault(path, value) is not value:
            raise FileExistsError(path)
        self.store[path] = value


def raises(error: Exception, *calls: int) -> Any:
    def answer(nth: int) -> None:
        if not calls or nth in calls:
            raise error

    return answer


def test_a_server_that_refuses_the_late_put_only_after_all_is_not_trusted() -> None:
    class Late(Conditional):
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
            if value == b"late" or not self.store:
                self.store[path] = value
                return
            raise FileExistsError(path)

    fs = Late()
    assert keeps_promise(fs, "/tmp") is False


def test_a_server_that_looks_first_and_puts_then_is_not_trusted() -> None:
    class Racy(Conditional):
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
            if self.exists(path):
                raise FileExistsError(path)
            self.store[path] = value

    assert keeps_promise(Racy(), "/tmp") is False


@pytest.mark.parametrize("error", [NotImplementedError(), TypeError("mode"), ValueError("mode")])
def test_a_client_that_knows_no_conditional_put_is_not_trusted(error: Exception) -> None:
    fs = Conditional(raises(error))
    assert keeps_promise(fs, "/tmp") is False


def test_what_else_goes_wrong_in_the_probe_says_nothing_of_the_promise() -> None:
    with pytest.raises(OSError, match="away"):
        keeps_promise(Conditional(raises(OSError("away"))), "/tmp")


# A put


class Contested(OSError):
    code = 409


def test_a_contested_put_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditional_put, "time", SimpleNamespace(sleep=lambda _: None))
    fs = Conditional(raises(Contested("now"), 1, 2, 3))
    assert put_if_absent(fs, "/x", b"1") is True
    assert fs.calls == 4
    assert put_if_absent(fs, "/x", b"2") is False
    assert fs.store["/x"] == b"1"


def test_a_put_that_stays_contested_has_not_won(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditional_put, "time", SimpleNamespace(sleep=lambda _: None))
    fs = Conditional(raises(Contested("now")))
    with pytest.raises(Contested):
        put_if_absent(fs, "/x", b"1")
    fs.store["/x"] = b"another's"
    assert put_if_absent(fs, "/x", b"1") is False


def test_a_put_that_stays_contested_is_told_in_words(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditional_put, "time", SimpleNamespace(sleep=lambda _: None))
    store = Folder(f"s3://{bucket}/contested")
    store.__dict__.update(keeps_create=True, _opened=(os.getpid(), Conditional(raises(Contested("now")))))
    with pytest.raises(StoreLost, match="did not answer as a store does"):
        store.create("x", b"1")


def test_another_failure_of_a_put_is_raised() -> None:
    with pytest.raises(OSError, match="away"):
        put_if_absent(Conditional(raises(OSError("away"))), "/x", b"1")


def test_threads_that_put_alone_take_turns() -> None:
    fs = Conditional()
    answers = race(20, lambda index: put_alone(fs, "/x", bytes([index])))
    assert sorted(answers) == [False] * 19 + [True]
    assert fs.store["/x"] == bytes([answers.index(True)])


def test_a_link_whose_answer_was_lost_on_a_network_disk_is_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.link

    def link(source: Path, target: Path) -> None:
        really(source, target)
        raise FileExistsError(17, "File exists")  # as NFS says when its client asked again

    staged = tmp_path / "staged"
    staged.write_bytes(b"a shard")
    monkeypatch.setattr(os, "link", link)
    assert conditional_put.link_if_absent(staged, tmp_path / "final") is True
    (tmp_path / "other").write_bytes(b"another's")
    monkeypatch.setattr(os, "link", really)
    assert conditional_put.link_if_absent(staged, tmp_path / "other") is False


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_hard_links_the_promise_is_one_process_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = Folder(str(tmp_path / "store"))
    assert store.keeps_create

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    without = Folder(store.url)
    assert not without.keeps_create
    assert without.create("record", b"whole") and not without.create("record", b"another")
    assert without.read("record") == b"whole"
    assert without.names("tmp") == []


def test_what_another_process_found_out_is_believed(tmp_path: Path) -> None:
    assert Folder(str(tmp_path), keeps_create=False).keeps_create is False
    assert Folder("memory://x").keeps_create is True


def test_what_killed_processes_staged_for_object_stores_is_removed_once_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = Folder("memory://staged").stage()
    dead = [tmp_path / f"stillhouse-stage-{2**22 + index}" for index in range(2)]
    for folder in dead:
        folder.mkdir()
        (folder / "stillhouse-0.part").write_bytes(b"half a shard")
    hours_ago = time.time() - 7200
    os.utime(dead[0], (hours_ago, hours_ago))
    os.utime(mine.parent, (hours_ago, hours_ago))
    remove_dead_stages()
    assert sorted(path for path in tmp_path.iterdir()) == sorted([dead[1], mine.parent])
