"""One process owns a folder: one start wins, a dead owner is replaced, and whoever was replaced is told so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import FolderInUse
from storage.base.errors import JobError, StoreError
from storage.cache import leases
from storage.objectstore.clock import store_now
from storage.objectstore.folder import Folder
from student_train.run import owner
from student_train.run.owner import Ownership, own, refuse_lost
from tests.storage.helpers import DAY, make_old, wait_for

OWNS = """
import sys
from storage.objectstore.folder import Folder
from student_train.run.owner import own
own(Folder(sys.argv[1]))
print("owned", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "run"))


@pytest.fixture
def other(folder: Folder) -> Iterator[subprocess.Popen[str]]:
    """Another process, which owns the folder."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", OWNS, folder.url], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.communicate()


def lease_files(folder: Folder) -> list[str]:
    return [name for name in folder.names() if name.startswith("lease")]


def rewrite(folder: Folder, **facts: Any) -> None:
    """Change what the lease says of its owner."""
    [name] = lease_files(folder)
    folder.write(name, json.dumps({**json.loads(folder.read(name)), **facts}).encode())


def test_a_folder_has_one_owner_until_it_is_released(folder: Folder) -> None:
    mine = own(folder)
    refuse_lost(folder, mine.id)
    with pytest.raises(FolderInUse) as caught:
        own(folder)
    assert caught.value.exit_code == 2
    host = os.uname().nodename
    assert str(caught.value).startswith(f"Process {os.getpid()} on {host} is at work in {folder.url}, since 2")
    assert f"in 10 min, or at once when {folder.url}/lease-1.json is removed" in str(caught.value)
    mine.release()
    mine.release()
    assert lease_files(folder) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease")]
    own(folder).release()


def test_of_many_starts_in_one_instant_one_wins(folder: Folder) -> None:
    gate = threading.Barrier(8)

    def start(_: int) -> Ownership | None:
        gate.wait()
        try:
            return own(folder)
        except FolderInUse:
            return None

    with ThreadPoolExecutor(8) as pool:
        [winner] = [one for one in pool.map(start, range(8)) if one is not None]
    refuse_lost(folder, winner.id)
    winner.release()


def test_of_many_that_find_a_dead_owner_one_takes_over(folder: Folder, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.communicate()
    test_of_many_starts_in_one_instant_one_wins(folder)


def test_an_owner_that_lives_is_respected_and_one_that_was_killed_is_replaced_at_once(
    folder: Folder, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(FolderInUse, match=f"Process {other.pid} on "):
        own(folder)
    other.kill()
    # It is a zombie until somebody waits for it, as in a container whose first process does not.
    wait_for(lambda: owner._started(other.pid) is None)
    mine = own(folder)
    assert lease_files(folder) == ["lease-2.json"]
    mine.release()
    assert lease_files(folder) == []


def test_another_process_of_the_same_number_is_not_the_owner(folder: Folder, other: subprocess.Popen[str]) -> None:
    rewrite(folder, started="1")
    own(folder).release()


@pytest.mark.parametrize("machine", [None, "another boot, or another container"])
def test_where_processes_are_not_seen_an_owner_is_alive_while_its_lease_is_fresh(
    folder: Folder, other: subprocess.Popen[str], machine: str | None
) -> None:
    rewrite(folder, machine=machine, host="elsewhere")
    other.kill()
    other.communicate()
    make_old(folder, days=400 / DAY)
    with pytest.raises(FolderInUse, match=r"on elsewhere is .* takes over in 3 min, or at once when .* is removed"):
        own(folder)
    make_old(folder, days=201 / DAY)
    own(folder).release()


def test_an_owner_is_told_that_it_was_taken_for_dead(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose machine was suspended for ten minutes."""
    mine = own(folder)
    make_old(folder, days=601 / DAY)
    theirs = own(folder)
    with pytest.raises(JobError, match=rf"^Process \d+ on .* has taken over {folder.url}\. .* run the same command"):
        refuse_lost(folder, mine.id)
    mine.release()
    refuse_lost(folder, theirs.id)
    folder.remove("lease-2.json")
    with pytest.raises(JobError, match=rf"^The lease in {folder.url} was removed\."):
        refuse_lost(folder, theirs.id)
    theirs.release()


def test_a_lease_is_renewed_while_it_is_the_owners(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    mine = own(folder)
    make_old(folder)
    wait_for(lambda: store_now(folder) - (folder.entries("")[0].modified or 0) < 60)
    looked = threading.Event()
    really = owner._id_of_owner

    def look(folder: Folder) -> str | None:
        found = really(folder)
        if found != mine.id:
            looked.set()
        return found

    monkeypatch.setattr(owner, "_id_of_owner", look)
    folder.remove("lease-1.json")
    looked.clear()
    assert looked.wait(10)
    assert lease_files(folder) == []
    mine.release()


def test_who_comes_late_with_an_old_list_makes_way(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look and its lease another process took over, ended, and made way for a third."""
    own(folder).release()
    late, third = Folder(folder.url), list[Ownership]()
    dead = own(folder)
    rewrite(folder, started="1")
    really = Folder.create

    def create(self: Folder, path: str, data: bytes) -> bool:
        if self is late and not third:
            dead.release()
            third.append(own(folder))
        return really(self, path, data)

    monkeypatch.setattr(Folder, "create", create)
    with pytest.raises(FolderInUse):
        own(late)
    refuse_lost(folder, third[0].id)
    third[0].release()


def test_what_is_no_lease_is_told_in_a_sentence(folder: Folder) -> None:
    folder.write("lease-1.json", b"[]")
    with pytest.raises(StoreError, match=r"lease-1\.json is no lease\. .* Remove it if no process"):
        own(folder)
    folder.remove("lease-1.json")
    folder.write("lease-x.json", b"not a lease")
    own(folder).release()
