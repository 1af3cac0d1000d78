"""What a store may lose: forget a cache, and remove what no sealed cache needs and no running job can still want."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from storage.cache import Cache, read_cache
from storage.commits import read_commit
from storage.errors import NoCache, StoreError
from storage.folder import Entry, Folder
from storage.index import read_index
from storage.leases import DEAD_S, live_jobs, sweep

# While a job runs, a file in tmp/ may be its own for that long.
_STAGED_S = 86_400.0


def forget(cache: Cache) -> dict[str, Any]:
    """Make a cache one that was never sealed; its shards stay until `collect` finds that nothing needs them."""
    store, index = cache.store, f"caches/{cache.key}/index.parquet"
    # Written again so that it is dated now: its shards are spared as long after this as young ones are.
    store.write(index, store.read(index))
    names = [name for name in store.names("names") if store.read(f"names/{name}").decode().strip() == cache.key]
    store.remove_files([*(f"names/{name}" for name in names), f"caches/{cache.key}/cache.json"])
    return {"cache_key": cache.key, "names": names, "shards": len(cache.shards), "bytes": cache.bytes}


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
        now = store.now()
        jobs = live_jobs(store)
        old = _Age(now, older_than_s)
        found = _Findings()
        listed, indexes = _listed_by_caches(store, old, found)
        wanted = set[str]().union(*(job.keys for job in jobs))
        for prefix in sorted({*store.names("commits"), *store.names("shards")}):
            _look_into(store, prefix, listed, wanted, old, found)
        _leftovers(store, old, _Age(now, max(older_than_s, _STAGED_S)) if jobs else old, found)
        for path in indexes:
            found.take("unsealed", path, 0)
        if not dry_run:
            # A commit goes before its shard: what is left in between is an attempt that nobody committed.
            for batch in _batches(found.paths, 500):
                check()
                store.remove_files(batch)
    return {
        "store": store.url,
        "dry_run": dry_run,
        "removed": dict(found.counts),
        "bytes": found.bytes,
        "kept": dict(found.kept),
        "jobs": [str(job) for job in jobs],
        "paths": found.paths,
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
    store: Folder, old: Callable[[Entry], bool], found: _Findings
) -> tuple[dict[str, str], list[str]]:
    """The paths of the shards that caches need, by shard key, and the folders' files of caches that can go."""
    listed: dict[str, str] = {}
    gone: list[str] = []
    for key in store.names("caches"):
        entries = {entry.name: entry for entry in store.entries(f"caches/{key}")}
        if "cache.json" in entries:
            try:
                shards = read_cache(store, key).shards
            except NoCache as error:
                raise StoreError(f"What {store.url} needs cannot be told: {error}") from None
        elif "index.parquet" in entries and not old(entries["index.parquet"]):
            found.kept["unsealed and young"] += 1
            shards = read_index(store.read(f"caches/{key}/index.parquet"))
        else:
            gone += [f"caches/{key}/{name}" for name in entries]
            continue
        listed |= {shard.shard_key: shard.path for shard in shards}
    return listed, gone


def _look_into(
    store: Folder,
    prefix: str,
    listed: dict[str, str],
    wanted: set[str],
    old: Callable[[Entry], bool],
    found: _Findings,
) -> None:
    """Find what can go of the commits and shards whose keys begin with `prefix`."""
    commits = {entry.name.removesuffix(".json"): entry for entry in store.entries(f"commits/{prefix}")}
    files: dict[str, list[Entry]] = {}
    for entry in store.entries(f"shards/{prefix}"):
        files.setdefault(entry.name.partition("-")[0], []).append(entry)
    for key in sorted({*commits, *files}):
        commit = commits.get(key)
        if key in listed:
            kept = listed[key]
        elif commit is None:
            # An attempt in flight has no commit yet; its job's lease names the key.
            kept = None
        elif key in wanted or not old(commit):
            found.kept["wanted by a job" if key in wanted else "young"] += 1
            kept = read_commit(store, key).path
        else:
            found.take("commits", f"commits/{prefix}/{commit.name}", commit.bytes)
            kept = None
        for file in files.get(key, []):
            path = f"shards/{prefix}/{file.name}"
            if path == kept:
                continue
            if key in wanted or not old(file):
                found.kept["attempts"] += 1
            else:
                found.take("shards", path, file.bytes)


def _leftovers(store: Folder, old: _Age, staged_old: _Age, found: _Findings) -> None:
    """Staged files, probes and the leases of jobs that died."""
    for entry in store.entries("tmp"):
        if staged_old(entry):
            found.take("staged", f"tmp/{entry.name}", entry.bytes)
    dead = _Age(old.now, max(DEAD_S, old.limit_s))
    entries = store.entries("jobs")
    alive = {_id(entry) for entry in entries if entry.name.endswith(".json") and not dead(entry)}
    for entry in entries:
        if _id(entry) not in alive and dead(entry):
            found.take("leases", f"jobs/{entry.name}", entry.bytes)


def _id(entry: Entry) -> str:
    return entry.name.partition(".")[0]
