"""A job killed between any two of its steps leaves a store from which the next one goes on, and gc cleans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.cache.catalog import verify
from storage.cache.commits import committed_keys
from storage.cache.gc import collect
from storage.cache.open import open_cache
from storage.objectstore.folder import Folder
from tests.storage.helpers import KEYS, commit, files, files_of, label, make_old

ROOT = Path(__file__).resolve().parents[2]


def child(what: str, store: Folder, fatal: int) -> int | None:
    """Run `what` in a process of its own; the steps that it took, or None if it was killed before that one."""
    command = [sys.executable, "-m", "tests.storage.helpers", what, store.url, str(fatal)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stdout)


def each_step(what: str, stores: Callable[[int], Folder]) -> list[Folder]:
    """One store for each step, on which `what` was killed before that step."""
    steps = child(what, stores(0), 0)
    assert steps is not None
    wrecks = [stores(fatal) for fatal in range(1, steps + 1)]
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda fatal: child(what, wrecks[fatal - 1], fatal), range(1, steps + 1)))
    assert ends == [None] * steps, f"{what} takes {steps} steps, and was to be killed at each"
    return wrecks


def check_the_next_run(store: Folder, digest: str) -> int:
    """How many shards a killed job had committed, after the next run and gc did what they should."""
    make_old(store, days=1)  # so that the dead job's lease is stale
    committed = committed_keys(store, KEYS)
    computed, cache = label(store)
    assert computed == set(KEYS) - committed
    assert cache.digest == digest
    collect(store, 0, dry_run=False)
    assert files(store) == files_of(cache)
    assert verify(open_cache(store.url_of("work")))["ok"]
    return len(committed)


def test_a_job_killed_at_any_step_on_a_local_disk_is_finished_by_the_next(tmp_path: Path) -> None:
    _, whole = label(Folder(str(tmp_path / "undisturbed")))
    wrecks = each_step("label", lambda fatal: Folder(str(tmp_path / f"store{fatal}")))
    left = {path.split("/")[0] for wreck in wrecks for path in files(wreck)}
    assert left == {"shards", "commits", "caches", "names", "tmp", "jobs"}, "kills fell on every part of the protocol"
    assert {check_the_next_run(wreck, whole.digest) for wreck in wrecks} == {0, 1, 2}


@pytest.mark.slow
def test_a_job_killed_at_any_step_on_s3_is_finished_by_the_next(bucket: str) -> None:
    def store(fatal: int | str) -> Folder:
        made = Folder(f"s3://{bucket}/killed-{os.getpid()}/{fatal}")
        made.__dict__["keeps_create"] = True
        return made

    _, whole = label(store("undisturbed"))
    wrecks = each_step("label", store)
    left = {path.split("/")[0] for wreck in wrecks for path in files(wreck)}
    assert left >= {"shards", "commits", "caches", "names", "jobs"}
    assert {check_the_next_run(wreck, whole.digest) for wreck in wrecks} == {0, 1, 2}


def littered(store: Folder) -> Folder:
    """A store with a sealed cache, committed shards that nothing needs, and an attempt that lost."""
    label(store)
    for key in ("aa" + "0" * 62, "bb" + "0" * 62):
        commit(store, key, 50)
    store.write(f"shards/{KEYS[0][:2]}/{KEYS[0]}-{'0' * 16}.parquet", b"lost")
    return store


def test_gc_killed_at_any_step_leaves_no_commit_without_its_shard_and_is_finished_by_the_next(tmp_path: Path) -> None:
    wrecks = each_step("collect", lambda fatal: littered(Folder(str(tmp_path / f"store{fatal}"))))
    for wreck in wrecks:
        make_old(wreck, days=1)
        for key in ("aa" + "0" * 62, "bb" + "0" * 62):
            shards = [path for path in files(wreck) if path.startswith(f"shards/{key[:2]}/{key}")]
            assert shards or not committed_keys(wreck, [key]), "a commit outlived its shard"
        collect(wreck, 0, dry_run=False)
        cache = open_cache(wreck.url_of("work"))
        assert verify(cache)["ok"]
        assert files(wreck) == files_of(cache)


def test_the_commits_are_gone_before_the_first_shard_goes(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an object store files go many at a time, and a kill falls anywhere among them."""
    littered(folder)
    really, batches = Folder.remove_files, []

    def remove_files(self: Folder, paths: list[str]) -> None:
        batches.append({path.split("/")[0] for path in paths})
        really(self, paths)

    monkeypatch.setattr(Folder, "remove_files", remove_files)
    collect(folder, 0, dry_run=False)
    kinds = [batch for batch in batches if batch & {"commits", "shards"}]
    assert kinds == [{"commits"}, {"shards"}]
