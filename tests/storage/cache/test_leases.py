"""A running job loses nothing to gc: its lease names its keys, and job and sweep see each other."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from storage.base.errors import JobError, StoreError, StoreLost
from storage.cache import leases
from storage.cache.catalog import verify
from storage.cache.commits import committed_keys
from storage.cache.gc import collect
from storage.cache.leases import lease, live_jobs, sweep
from storage.objectstore.clock import store_now
from storage.objectstore.folder import Folder
from tests.storage.helpers import DAY, KEYS, commit, files, label, make_old, wait_for

KEY, OTHER = "ab" + "0" * 62, "ab" + "1" * 62


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that waits for a sweep looks again at once."""
    clock = SimpleNamespace(sleep=lambda _: time.sleep(0.002), monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr(leases, "time", clock)


# Who is at work


def test_a_lease_says_who_holds_it_and_what_it_names_while_the_block_runs(folder: Folder) -> None:
    with lease(folder, "digits", [KEY, OTHER]) as held:
        [job] = live_jobs(folder)
        assert (job.name, job.keys) == ("digits", {KEY, OTHER})
        assert str(job).startswith("'digits' on ")
        assert json.loads(folder.read(held.path))["pid"] == os.getpid()
    assert live_jobs(folder) == []


def test_two_leases_do_not_know_each_other(folder: Folder) -> None:
    with lease(folder, "one", [KEY]):
        with lease(folder, "two", iter([OTHER])):
            assert {job.name: job.keys for job in live_jobs(folder)} == {"one": {KEY}, "two": {OTHER}}
        assert [job.name for job in live_jobs(folder)] == ["one"]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nothing_of_a_lease_is_left_after_the_block_however_it_ends(
    folder: Folder, error: type[BaseException] | None
) -> None:
    if error is None:
        with lease(folder, "digits", [KEY]):
            pass
    else:
        with pytest.raises(error), lease(folder, "digits", [KEY]):
            raise error
    assert files(folder) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease")]


def test_a_lease_that_cannot_be_taken_back_hides_no_error_of_its_block(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody renews it, so it is stale after a while."""

    def away(*_: object) -> None:
        raise StoreLost("the store is away")

    monkeypatch.setattr(Folder, "remove_files", away)
    with pytest.raises(ValueError, match="the job's own"), lease(folder, "digits", [KEY]):
        raise ValueError("the job's own")
    with lease(folder, "digits", [KEY]):
        pass


def test_what_is_no_lease_in_the_folder_of_leases_is_told_of_in_a_sentence(folder: Folder) -> None:
    folder.write("jobs/notes.txt", b"not a lease")
    assert live_jobs(folder) == []
    folder.write(f"jobs/job-{'0' * 32}.keys", b"")
    folder.write(f"jobs/job-{'0' * 32}.json", b"[]")
    with pytest.raises(StoreError, match=r"jobs/job-0+\.json is no lease\. It is JSON that a running job wrote"):
        live_jobs(folder)


# Renewed, or stale


def test_a_lease_is_renewed_while_the_block_runs(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    with lease(local, "digits", [KEY]) as held:
        make_old(local)
        wait_for(lambda: time.time() - os.stat(f"{local.url}/{held.path}").st_mtime < 60)
        assert [job.name for job in live_jobs(local)] == ["digits"]


def test_a_lease_that_nobody_renewed_is_a_dead_jobs(local: Folder) -> None:
    with lease(local, "digits", [KEY]):
        make_old(local, days=590 / DAY)
        assert [job.name for job in live_jobs(local)] == ["digits"]
        make_old(local, days=20 / DAY)
        assert live_jobs(local) == []


def test_age_is_told_by_the_stores_clock(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease(folder, "digits", [KEY]):
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert abs(store_now(folder) - folder.entries("jobs")[0].modified) < 60  # type: ignore[operator]
        assert [job.name for job in live_jobs(folder)] == ["digits"]
        make_old(folder, days=700 / DAY)
        assert live_jobs(folder) == []


@pytest.mark.parametrize("error", [StoreLost("away"), OSError(5, "the disk is broken")])
def test_a_store_that_is_away_for_a_while_does_not_end_a_job_and_its_lease_goes_on(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    really, failed, written = Folder.write, [], []

    def write(self: Folder, path: str, data: bytes) -> None:
        if threading.current_thread().name.startswith("lease"):
            if len(failed) < 3:
                failed.append(path)
                raise error
            written.append(path)
        really(self, path, data)

    monkeypatch.setattr(Folder, "write", write)
    with lease(folder, "digits", [KEY]) as held:
        wait_for(lambda: len(written) > 1)
    assert failed == [held.path] * 3 and set(written) == {held.path}
    assert files(folder) == []


# What gc spares


def test_gc_takes_nothing_that_a_running_job_names(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = commit(folder, KEY, 0), commit(folder, OTHER, 0)
    in_flight = f"shards/cd/{'cd' + '0' * 62}-0123456789abcdef.parquet"
    folder.write(in_flight, b"published, not committed yet")
    with lease(folder, "digits", [KEY, "cd" + "0" * 62]):
        answer = collect(folder, 0, dry_run=False)
        assert answer["kept"] == {"wanted by a job": 1, "attempts": 1}
        assert answer["jobs"] and answer["jobs"][0].startswith("'digits' on ")
        assert folder.exists(mine.path) and folder.exists(in_flight)
        assert not folder.exists(theirs.path)
        assert committed_keys(folder, [KEY, OTHER]) == {KEY}
    collect(folder, 0, dry_run=False)
    assert files(folder) == []


def test_gc_takes_what_only_a_dead_job_names(local: Folder) -> None:
    commit(local, KEY, 0)
    with lease(local, "digits", [KEY]):
        make_old(local, days=601 / DAY)
        answer = collect(local, 0, dry_run=False)
        assert answer["jobs"] == [] and answer["removed"] == {"commits": 1, "shards": 1, "leases": 2}
        assert files(local) == []


def test_a_lease_of_a_job_that_began_long_ago_stays_while_it_is_renewed(
    local: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys were written once, at its start."""
    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    commit(local, KEY, 0)
    with lease(local, "digits", [KEY]) as held:
        make_old(local)
        wait_for(lambda: time.time() - os.stat(f"{local.url}/{held.path}").st_mtime < 60)
        collect(local, 0, dry_run=False)
        assert [job.keys for job in live_jobs(local)] == [{KEY}]
        assert committed_keys(local, [KEY]) == {KEY}


def test_staged_files_stay_for_a_day_while_any_job_runs(local: Folder) -> None:
    label(local)
    staged = local.stage()
    staged.write_bytes(b"half a shard")
    with lease(local, "digits", [KEY]):
        collect(local, 0, dry_run=False)
        assert staged.exists()
        make_old(local, f"tmp/{staged.name}", days=1.1)
        collect(local, 0, dry_run=False)
        assert not staged.exists()


def test_an_index_that_a_killed_sealer_left_stays_while_a_job_runs_which_may_seal_it(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next sealer takes the index as it is, so it must not go between that look and cache.json."""
    _, cache = label(folder)
    folder.remove(f"caches/{cache.key}/cache.json")
    with lease(folder, "work", KEYS):
        collect(folder, 0, dry_run=False)
        assert folder.exists(f"caches/{cache.key}/index.parquet")
        computed, again = label(folder)
    assert computed == set() and again.digest == cache.digest and verify(again)["ok"]


# Job and sweep see each other


def test_a_job_waits_for_a_sweep_and_begins_when_it_ends(folder: Folder, quick: None) -> None:
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        with lease(folder, "digits", [KEY]):
            begun.set()
            over.wait(10)

    with sweep(folder):
        thread = threading.Thread(target=work)
        thread.start()
        wait_for(lambda: [job.name for job in live_jobs(folder)] == ["digits"])
        assert not begun.wait(0.2), "a job began in the middle of a sweep"
    assert begun.wait(10)
    over.set()
    thread.join()
    assert files(folder) == []


def test_a_job_does_not_wait_for_a_sweep_that_died(local: Folder, quick: None) -> None:
    local.write(f"jobs/sweep-{'0' * 32}.json", b"")
    make_old(local, days=601 / DAY)
    with lease(local, "digits", [KEY]):
        pass


def test_a_job_that_waits_is_interrupted_without_a_trace(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(leases, "time", SimpleNamespace(sleep=interrupt, time=time.time))
    with sweep(folder):
        with pytest.raises(KeyboardInterrupt), lease(folder, "digits", [KEY]):
            pass
        assert live_jobs(folder) == []


def test_a_sweep_that_could_not_be_renewed_removes_nothing_more(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with sweep(local) as check:
        check()
        monkeypatch.setattr(leases, "DEAD_S", 0.02)
        time.sleep(0.02)
        with pytest.raises(JobError, match=r"could not say for five minutes .* Run it again"):
            check()


@pytest.mark.parametrize("pauses", [0.0, 0.003])
def test_whichever_of_job_and_sweep_comes_first_a_job_keeps_what_it_found(
    local: Folder, quick: None, monkeypatch: pytest.MonkeyPatch, pauses: float
) -> None:
    """The job trusts what it finds committed, as the teacher's job does; the sweep takes all that it may."""
    dice = random.Random(7)

    def slowly(owner: Any, name: str) -> None:
        really = getattr(owner, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            time.sleep(dice.random() * pauses)
            return really(*arguments, **settings)

        monkeypatch.setattr(owner, name, call)

    for name in ("write", "names", "entries", "remove_files"):
        slowly(Folder, name)
    for _ in range(30):
        sweeper = threading.Thread(target=lambda: collect(local, 0, dry_run=False))
        commit(local, KEYS[0], 0)
        sweeper.start()
        time.sleep(dice.choice([0.0, 0.01, 0.03]))
        # Where the sweep took the commit first it is computed again; a shard that is gone would be told by `seal`.
        _, cache = label(local)
        sweeper.join()
        assert verify(cache)["ok"]
        local.remove("caches")
        local.remove("commits")
        local.remove("shards")
