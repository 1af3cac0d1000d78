"""One winner a shard key, whoever races, dies or asks twice."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from storage.base.digest import canonical_json, range_digest, sha256_file
from storage.base.errors import CorruptShard, StoreLost
from storage.cache.commits import (
    Commit,
    commit_path,
    commit_shard,
    committed_keys,
    new_attempt,
    publish_shard,
    read_commit,
    settle,
    shard_path,
)
from storage.format.byte_ranges import byte_ranges
from storage.format.sections import ByteRange
from storage.format.shard import write_shard
from storage.objectstore.folder import Folder
from tests.storage.helpers import files as all_files
from tests.storage.helpers import race

KEY = "ab" + "0" * 62
GOLDEN = Path(__file__).parents[1] / "golden"
Attempt = Callable[..., Commit]


@pytest.fixture
def attempt(make_samples: Any, make_batch: Any) -> Attempt:
    """`attempt(store, name, first)`: one attempt at KEY, with rows of its own."""

    def commit(store: Folder, name: str, first: int = 0, key: str = KEY) -> Commit:
        batch = make_batch(make_samples(4, first), key)
        staged = store.stage()
        return commit_shard(store, key, name, staged, write_shard(staged, batch.schema, [batch]))

    return commit


def files(store: Folder) -> list[str]:
    return [f"{kk}/{name}" for kk in store.names("shards") for name in store.names(f"shards/{kk}")]


def test_the_paths_are_those_of_the_design() -> None:
    assert shard_path(KEY, "a1") == f"shards/ab/{KEY}-a1.parquet"
    assert commit_path(KEY) == f"commits/ab/{KEY}.json"


def test_every_attempt_has_a_name_of_its_own() -> None:
    assert len({new_attempt() for _ in range(100)}) == 100


def test_a_committed_shard_is_what_its_record_says(folder: Folder, attempt: Attempt) -> None:
    commit = attempt(folder, "a1")
    assert (commit.shard_key, commit.attempt, commit.rows) == (KEY, "a1", 4)
    assert commit.path == shard_path(KEY, "a1")
    data = folder.read(commit.path)
    with folder.open(commit.path) as file:
        assert commit.sha256 == sha256_file(file)
    assert commit.bytes == len(data) == commit.footer.stop
    assert sum(group.rows for group in commit.row_groups) == 4
    with folder.open(commit.path) as file:
        assert pq.read_table(file).num_rows == 4
    assert read_commit(folder, KEY) == commit
    assert folder.names("tmp") == []


def test_the_record_holds_the_ranges_of_the_published_file(local: Folder, attempt: Attempt) -> None:
    commit = attempt(local, "a1")
    groups, footer = byte_ranges(Path(local.url_of(commit.path)))
    assert (commit.row_groups, commit.footer) == (tuple(groups), footer)


def test_the_staged_file_is_gone_after_a_commit(folder: Folder, make_samples: Any, make_batch: Any) -> None:
    batch, staged = make_batch(make_samples(2), KEY), folder.stage()
    write_shard(staged, batch.schema, [batch])
    commit_shard(folder, KEY, "a1", staged, 2)
    assert not staged.exists()


@pytest.mark.parametrize("first_of_loser", [0, 100])
def test_of_two_attempts_the_first_wins_and_both_are_told_so(
    folder: Folder, attempt: Attempt, first_of_loser: int
) -> None:
    winner = attempt(folder, "a1", 0)
    told = attempt(folder, "a2", first_of_loser)
    assert told == winner == read_commit(folder, KEY)
    assert files(folder) == [f"ab/{KEY}-a1.parquet"]
    assert folder.names("tmp") == []


def test_of_many_that_race_all_are_told_of_one_winner_whose_file_stays(folder: Folder, attempt: Attempt) -> None:
    told: list[Commit] = []
    threads = [threading.Thread(target=lambda n=n: told.append(attempt(folder, f"a{n}", n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 8 and len(set(told)) == 1
    assert files(folder) == [told[0].path.removeprefix("shards/")]
    assert folder.names("tmp") == []


def test_of_fifty_writers_one_wins_and_of_the_others_no_file_is_left(
    folder: Folder, make_samples: Any, make_batch: Any, tmp_path: Path
) -> None:
    contents = []
    for first in (0, 100):
        batch = make_batch(make_samples(4, first), KEY)
        write_shard(tmp_path / "shard", batch.schema, [batch])
        contents.append((tmp_path / "shard").read_bytes())
    published, gate = [], threading.Barrier(50)

    def write(index: int) -> Commit:
        staged = folder.stage()
        staged.write_bytes(contents[index % 2])
        mine = publish_shard(folder, KEY, f"a{index}", staged, 4)
        published.append(mine.path)
        gate.wait()
        return settle(folder, mine)

    told = race(50, write)
    assert len(set(published)) == 50
    winner = read_commit(folder, KEY)
    assert told == [winner] * 50
    assert all_files(folder) == sorted([winner.path, commit_path(KEY)])
    assert sha256(folder.read(winner.path)).hexdigest() == winner.sha256


RACER = """
import sys, threading
from pathlib import Path
from storage.cache.commits import publish_shard, settle
from storage.objectstore.folder import Folder

store, key, name = Folder(sys.argv[1]), sys.argv[2], sys.argv[3]
told = []

def work(index):
    staged = store.stage()
    staged.write_bytes(shard)
    mine = publish_shard(store, key, f"{name}{index}", staged, 4)
    gate.wait()
    told.append(settle(store, mine).path)

shard = Path(sys.argv[4]).read_bytes()
gate = threading.Barrier(6, action=lambda: (print("ready", flush=True), sys.stdin.readline()))
threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*told)
"""


def test_of_four_processes_with_six_writers_each_one_writer_wins(
    local: Folder, make_samples: Any, make_batch: Any, tmp_path: Path
) -> None:
    batch = make_batch(make_samples(4), KEY)
    write_shard(tmp_path / "shard", batch.schema, [batch])
    command = [sys.executable, "-c", RACER, local.url, KEY]
    racers = [
        subprocess.Popen(
            [*command, f"p{process}x", str(tmp_path / "shard")],
            cwd=Path(__file__).resolve().parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    assert len(files(local)) == 24 and committed_keys(local, [KEY]) == set()
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    told = " ".join(racer.communicate()[0] for racer in racers).split()
    winner = read_commit(local, KEY)
    assert told == [winner.path] * 24
    assert all_files(local) == sorted([winner.path, commit_path(KEY)])


@pytest.mark.parametrize("lost", ["put", "answer"])
def test_a_commit_whose_put_ended_without_an_answer_is_asked_for_again(
    folder: Folder, attempt: Attempt, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    really, asked = folder.create, []

    def create(path: str, data: bytes) -> bool:
        if not path.startswith("commits/"):
            return really(path, data)
        asked.append(data)
        made = len(asked) > 1 or (lost == "answer" and really(path, data))
        if len(asked) == 1:
            raise StoreLost("no answer")
        return really(path, data) and made

    monkeypatch.setattr(folder, "create", create)
    assert attempt(folder, "a1").attempt == read_commit(folder, KEY).attempt == "a1"
    assert len(asked) == 2 and asked[0] == asked[1]
    assert files(folder) == [f"ab/{KEY}-a1.parquet"]


def test_a_store_that_gives_no_answer_three_times_is_lost_and_the_file_stays(
    folder: Folder, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def create(path: str, data: bytes) -> bool:
        asked.append(path)
        raise StoreLost("no answer")

    monkeypatch.setattr(folder, "create", create)
    with pytest.raises(StoreLost):
        attempt(folder, "a1")
    assert asked == [commit_path(KEY)] * 3
    assert files(folder) == [f"ab/{KEY}-a1.parquet"], "its record may have been put after all"


def test_a_winner_that_gc_took_while_the_loser_looked_leaves_the_key_to_the_loser(
    folder: Folder, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(folder, "a1")
    really, asked = folder.create, []

    def create(path: str, data: bytes) -> bool:
        made = really(path, data)
        if path.startswith("commits/") and not made:
            asked.append(path)
            folder.remove(path)
        return made

    monkeypatch.setattr(folder, "create", create)
    assert attempt(folder, "a2").attempt == read_commit(folder, KEY).attempt == "a2"
    assert asked == [commit_path(KEY)]


def test_a_refused_put_of_my_own_record_is_my_success(
    folder: Folder, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose first answer was lost asks again, and is told that the record is there already."""
    really = folder.create

    def create(path: str, data: bytes) -> bool:
        return really(path, data) and not path.startswith("commits/")

    monkeypatch.setattr(folder, "create", create)
    commit = attempt(folder, "a1")
    assert commit.attempt == "a1"
    assert read_commit(folder, KEY) == commit
    assert files(folder) == [f"ab/{KEY}-a1.parquet"]


def test_the_file_is_there_before_the_record_that_names_it(
    folder: Folder, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, seen = folder.create, []

    def look(path: str, data: bytes) -> bool:
        if path.startswith("commits/"):
            seen.append(folder.size(json.loads(data)["path"]) == json.loads(data)["bytes"])
        return really(path, data)

    monkeypatch.setattr(folder, "create", look)
    attempt(folder, "a1")
    assert seen == [True]


def test_an_attempt_that_died_before_its_record_does_not_stand_in_the_way(
    folder: Folder, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = folder.create

    def die(path: str, data: bytes) -> bool:
        if path.startswith("commits/"):
            raise KeyboardInterrupt
        return really(path, data)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(folder, "create", die)
        attempt(folder, "a1")
    assert committed_keys(folder, [KEY]) == set()
    commit = attempt(folder, "a2")
    assert commit.attempt == "a2"
    assert folder.read(commit.path)


def test_two_keys_do_not_know_each_other(folder: Folder, attempt: Attempt) -> None:
    other = "ac" + KEY[2:]
    assert attempt(folder, "a1").path != attempt(folder, "a1", key=other).path
    assert committed_keys(folder, [KEY, other]) == {KEY, other}


def test_only_the_keys_that_were_asked_for_are_told(folder: Folder, attempt: Attempt) -> None:
    same_folder, other = "ab" + "1" * 62, "cd" + "0" * 62
    attempt(folder, "a1")
    attempt(folder, "a1", key=same_folder)
    assert committed_keys(folder, [KEY, other]) == {KEY}
    assert committed_keys(folder, iter([KEY, same_folder])) == {KEY, same_folder}
    assert committed_keys(folder, []) == set()


def test_a_key_without_a_commit_is_not_found(folder: Folder) -> None:
    assert committed_keys(folder, [KEY]) == set()
    with pytest.raises(FileNotFoundError):
        read_commit(folder, KEY)


def test_a_commit_comes_back_from_its_record(folder: Folder, attempt: Attempt) -> None:
    commit = attempt(folder, "a1")
    assert Commit.from_dict(commit.to_dict()) == commit
    assert Commit.from_dict(json.loads(canonical_json(commit.to_dict()))) == commit
    assert folder.read(commit_path(KEY)) == canonical_json(commit.to_dict())
    assert set(commit.to_dict()) == {
        "shard_key",
        "attempt",
        "path",
        "bytes",
        "sha256",
        "rows",
        "row_groups",
        "footer",
        "quarantined",
    }


def test_a_record_says_where_the_sections_of_each_row_group_stop(folder: Folder, attempt: Attempt) -> None:
    commit = attempt(folder, "a1")
    [group] = json.loads(folder.read(commit_path(KEY)))["row_groups"]
    assert group["sections"] == [list(section) for section in commit.row_groups[0].sections.values()]
    data, start = folder.read(commit.path), group["start"]
    for stop, xxh3 in group["sections"]:
        assert range_digest(data[start:stop]) == xxh3
        start = stop
    assert start == group["stop"] and len(group["sections"]) == 3
    assert set(commit.to_dict()["footer"]) == {"start", "stop", "rows", "xxh3"}


def test_the_golden_record_is_read_with_its_exact_values() -> None:
    record = (GOLDEN / "commit-v1.json").read_bytes()
    commit = Commit.from_dict(json.loads(record))
    assert commit.row_groups[0].sections == {
        "inputs": (132, "33ddb6a702496f0bda167a4e111d7738"),
        "plain": (310, "3369794ba43ae6abeca243231c35ee82"),
        "targets": (368, "36a8a40e39763f8367a3ca1d87265f88"),
    }
    assert commit.row_groups[0][:4] == (4, 368, 4, "7814f604c406fdbc0532c4b317ffad0e")
    assert commit.footer == ByteRange(1064, 3626, 0, "455b8323819951c507ddb710dae6163a")
    assert (commit.shard_key, commit.attempt, commit.rows) == ("golden-key", "00112233445566aa", 10)
    assert commit.quarantined == () and canonical_json(commit.to_dict()) == record


@pytest.mark.parametrize("name", ["quarantined", "row_groups", "footer"])
def test_a_record_that_lacks_a_field_is_named(folder: Folder, attempt: Attempt, name: str) -> None:
    attempt(folder, "a1")
    record = json.loads(folder.read(commit_path(KEY)))
    del record[name]
    folder.write(commit_path(KEY), canonical_json(record))
    with pytest.raises(CorruptShard, match=rf"{KEY}.json is no commit record \(KeyError: '{name}'\)"):
        read_commit(folder, KEY)


@pytest.mark.parametrize("sections", [[], None, [[9, "00"]], [[9, "00"]] * 4, [9, 9, 9], [[9]] * 3, 3, [[4, "00"]] * 3])
def test_a_record_with_other_sections_than_ours_is_named(folder: Folder, attempt: Attempt, sections: object) -> None:
    attempt(folder, "a1")
    record = json.loads(folder.read(commit_path(KEY)))
    record["row_groups"][0]["sections"] = sections
    folder.write(commit_path(KEY), canonical_json(record))
    with pytest.raises(CorruptShard, match=f"{KEY}.json is no commit record"):
        read_commit(folder, KEY)


def test_a_staged_file_of_other_rows_is_not_committed(folder: Folder, make_samples: Any, make_batch: Any) -> None:
    batch, staged = make_batch(make_samples(4), KEY), folder.stage()
    write_shard(staged, batch.schema, [batch])
    with pytest.raises(CorruptShard, match=rf"The staged shard {KEY} holds 4 rows\. 5 were written"):
        commit_shard(folder, KEY, "a1", staged, 5)
    assert committed_keys(folder, [KEY]) == set() and files(folder) == []
    assert not staged.exists()


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_staged_file_that_is_not_whole_is_not_committed(
    folder: Folder, make_samples: Any, make_batch: Any, kept: int
) -> None:
    batch, staged = make_batch(make_samples(4), KEY), folder.stage()
    write_shard(staged, batch.schema, [batch])
    staged.write_bytes(staged.read_bytes()[:kept])
    with pytest.raises(CorruptShard, match=f"The staged shard {KEY}"):
        commit_shard(folder, KEY, "a1", staged, 4)
    assert committed_keys(folder, [KEY]) == set() and files(folder) == []
    assert not staged.exists()


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b"\xff", b'{"shard_key": "ab"}'])
def test_a_record_that_cannot_be_read_is_named(folder: Folder, attempt: Attempt, record: bytes) -> None:
    """As a kill in the middle of a put leaves it where there are no hard links."""
    folder.write(commit_path(KEY), record)
    for read in (lambda: read_commit(folder, KEY), lambda: attempt(folder, "a1")):
        with pytest.raises(CorruptShard, match=commit_path(KEY)):
            read()


def test_a_field_that_a_later_version_added_is_left_alone(folder: Folder, attempt: Attempt) -> None:
    commit = attempt(folder, "a1")
    later = {**commit.to_dict(), "new": 1, "footer": {**commit.to_dict()["footer"], "new": 2}}
    assert Commit.from_dict(later) == commit
