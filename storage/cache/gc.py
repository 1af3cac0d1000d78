"""What a store may lose: forget a cache, and remove what no sealed cache needs and no running job can still want."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from storage.base.errors import CorruptShard, NoCache, StoreError
from storage.cache.cache import Cache, read_cache
from storage.cache.commits import read_commit
from storage.cache.index import read_index
from storage.cache.leases import DEAD_S, live_jobs, sweep
from storage.objectstore.clock import store_clock
from storage.objectstore.folder import Entry, Folder

# While a job runs, a file in tmp/ may be its own for that long; and where none does, it may be the lease on its way of
# one that begins, for as long as a lease lasts.
_STAGED_S = 86_400.0

# What a store's own files are called. Whatever else lies in it was put there by somebody, and stays.
_SHARD = re.compile(r"([0-9a-f]{64})-[0-9a-z]+\.parquet")
_COMMIT = re.compile(r"([0-9a-f]{64})\.json")
_CACHE = re.compile(r"[0-9a-f]{64}")
_PLAIN = re.compile(r"plain-[0-9a-f]{32}\.parquet")
_STAGED = re.compile(r"stillhouse-[0-9a-f]{32}\.part|(probe|clock)-[0-9a-f]{32}")
_LEASE = re.compile(r"job-[0-9a-f]{32}\.(json|keys)|sweep-[0-9a-f]{32}\.json")


def forget(cache: Cache) -> dict[str, Any]:
    """Make a cache one that was never sealed; its shards stay until `collect` finds that nothing needs them."""
    store, index = cache.store, f"caches/{cache.key}/index.parquet"
    # Written again so that it is dated now: its shards are spared as long after this as young ones are.
    store.write(index, store.read(index))
    names = [name for name in store.names("names") if store.read(f"names/{name}").decode().strip() == cache.key]
    store.remove_files([*(f"names/{name}" for name in names), f"caches/{cache.key}/cache.json"])
    return {"cache_key": cache.key, "names": names, "shards": len(cache.index), "bytes": cache.bytes}


@dataclass
class _Findings:
    """What can go, kind by kind, and what could not go yet and why."""

    paths: list[str] = field(default_factory=list[str])
    counts: Counter[str] = field(default_factory=Counter[str])
    bytes: int = 0
    kept: Counter[str] = field(default_factory=Counter[str])

    def take(self, kind: str, path: str, size: int) -> None:
        self.paths.append(path)
        self.counts[kind] += 1
        self.bytes += size


def collect(store: Folder, older_than_s: float, *, dry_run: bool) -> dict[str, Any]:
    """Remove from a store what nothing needs and is older than that: commits, shards, unsealed caches, leftovers.

    Needed is what a sealed cache lists, or one that was forgotten or left unsealed within that time, and
    what a running job's lease names. Age is by the store's clock. Raises StoreError for what is no store,
    or where a cache cannot be read.
    """
    if not (store.exists("commits") or store.exists("caches") or store.exists("shards")):
        raise StoreError(
            f"{store.url} is no store: it has neither commits nor caches.", "A teacher's recipe makes one."
        )
    with nullcontext(_no_check) if dry_run else sweep(store) as check:
        now = store_clock(store)
        if now is None:
            raise StoreError(f"{store.url} tells no dates of its files.", "What gc spares it spares by age.")
        jobs = live_jobs(store)
        old = _Age(now, older_than_s)
        found = _Findings()
        listed, unsealed = _listed_by_caches(store, old, bool(jobs), found)
        wanted = set[str]().union(*(job.keys for job in jobs))
        for prefix in sorted({*store.names("commits"), *store.names("shards")}):
            _look_into(store, prefix, listed, wanted, old, found)
        _leftovers(store, old, _Age(now, max(older_than_s, _STAGED_S if jobs else DEAD_S)), found)
        for kind, path, size in unsealed:
            found.take(kind, path, size)
        # A commit goes before its shard: what is left in between is an attempt that nobody committed. The files of
        # a batch go in any order, so none holds both.
        commits = [path for path in found.paths if path.startswith("commits/")]
        others = [path for path in found.paths if not path.startswith("commits/")]
        if not dry_run:
            for batch in (*_batches(commits, 500), *_batches(others, 500)):
                check()
                store.remove_files(batch)
    return {
        "store": store.url,
        "dry_run": dry_run,
        "removed": dict(found.counts),
        "bytes": found.bytes,
        "kept": dict(found.kept),
        "jobs": [str(job) for job in jobs],
        "paths": [*commits, *others],
    }


@dataclass(frozen=True)
class _Age:
    now: float
    limit_s: float

    def __call__(self, entry: Entry) -> bool:
        """Whether a file is older than the limit; one without a date is, only if anything is."""
        return self.limit_s <= 0 if entry.modified is None else self.now - entry.modified >= self.limit_s


def _no_check() -> None:
    pass


def _batches(paths: list[str], size: int) -> Iterable[list[str]]:
    return (paths[start : start + size] for start in range(0, len(paths), size))


def _listed_by_caches(
    store: Folder, old: Callable[[Entry], bool], busy: bool, found: _Findings
) -> tuple[dict[str, set[str]], list[tuple[str, str, int]]]:
    """The paths of the shards that caches need, by shard key, and what can go of the others: kind, path, bytes."""
    listed: dict[str, set[str]] = {}
    gone: list[tuple[str, str, int]] = []
    for key in store.names("caches"):
        entries = {entry.name: entry for entry in store.entries(f"caches/{key}")}
        index = f"caches/{key}/index.parquet"
        if "cache.json" in entries:
            try:
                shards = read_cache(store, key).index.facts("shard_key", "path")
            except NoCache as error:
                raise StoreError(f"What {store.url} needs cannot be told: {error}") from None
        elif not _CACHE.fullmatch(key):
            continue
        elif "index.parquet" in entries and not old(entries["index.parquet"]):
            found.kept["unsealed and young"] += 1
            shards = _listed_by(store, index)
        elif "index.parquet" in entries and busy:
            # A job that seals takes an index that is there; in between it must not go.
            found.kept["unsealed, while a job runs"] += 1
            continue
        else:
            # Where the index is gone already, a gc was stopped in between, or a reader finished later than that.
            gone += [("unsealed", index, 0)] if "index.parquet" in entries else []
            plain = (entry for entry in entries.values() if _PLAIN.fullmatch(entry.name) and old(entry))
            gone += [("plain", f"caches/{key}/{entry.name}", entry.bytes) for entry in plain]
            continue
        for shard_key, path in shards:
            listed.setdefault(shard_key, set()).add(path)
    return listed, gone


def _listed_by(store: Folder, index: str) -> Iterable[tuple[Any, ...]]:
    try:
        return read_index(store.read(index)).facts("shard_key", "path")
    except FileNotFoundError:
        return ()  # another gc took it
    except (CorruptShard, OSError) as error:
        raise StoreError(
            f"{store.url_of(index)} is no index of shards ({type(error.__cause__ or error).__name__}).",
            "It lists what a cache needs that was forgotten, or is not sealed yet.",
            "Remove it and run gc again.",
        ) from None


def _look_into(
    store: Folder,
    prefix: str,
    listed: dict[str, set[str]],
    wanted: set[str],
    old: Callable[[Entry], bool],
    found: _Findings,
) -> None:
    """Find what can go of the commits and shards whose keys begin with `prefix`."""
    commits = {key: entry for key, entry in _ours(store.entries(f"commits/{prefix}"), _COMMIT, prefix)}
    files: dict[str, dict[str, Entry]] = {}
    for key, entry in _ours(store.entries(f"shards/{prefix}"), _SHARD, prefix):
        files.setdefault(key, {})[f"shards/{prefix}/{entry.name}"] = entry
    for key in sorted({*commits, *files}):
        commit = commits.get(key)
        kept = listed.get(key, set())
        unlisted = {path: file for path, file in files.get(key, {}).items() if path not in kept}
        # An attempt in flight has no commit yet; its job's lease names the key.
        if commit is not None:
            if key not in listed and key not in wanted and old(commit):
                found.take("commits", f"commits/{prefix}/{commit.name}", commit.bytes)
            else:
                if key not in listed:
                    found.kept["wanted by a job" if key in wanted else "young"] += 1
                if unlisted:
                    with suppress(FileNotFoundError):  # another gc took it
                        unlisted.pop(read_commit(store, key).path, None)
        for path, file in unlisted.items():
            if key in wanted or not old(file):
                found.kept["attempts"] += 1
            else:
                found.take("shards", path, file.bytes)


def _ours(entries: Iterable[Entry], pattern: re.Pattern[str], prefix: str) -> Iterable[tuple[str, Entry]]:
    """The entries whose names are a key's that begins with `prefix`, with that key."""
    for entry in entries:
        name = pattern.fullmatch(entry.name)
        if name is not None and name[1].startswith(prefix):
            yield name[1], entry


def _leftovers(store: Folder, old: _Age, staged_old: _Age, found: _Findings) -> None:
    """Staged files, probes and the leases of jobs that died."""
    for entry in store.entries("tmp"):
        if _STAGED.fullmatch(entry.name) and staged_old(entry):
            found.take("staged", f"tmp/{entry.name}", entry.bytes)
    dead = _Age(old.now, max(DEAD_S, old.limit_s))
    entries = [entry for entry in store.entries("jobs") if _LEASE.fullmatch(entry.name)]
    alive = {_id(entry) for entry in entries if entry.name.endswith(".json") and not dead(entry)}
    for entry in entries:
        if _id(entry) not in alive and dead(entry):
            found.take("leases", f"jobs/{entry.name}", entry.bytes)


def _id(entry: Entry) -> str:
    return entry.name.partition(".")[0]
