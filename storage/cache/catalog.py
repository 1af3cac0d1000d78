"""What a store holds: its caches listed, and each verified against every byte."""

from __future__ import annotations

from typing import Any

from storage.base.digest import sha256_file
from storage.base.errors import CorruptShard, NoCache
from storage.cache.cache import Cache, read_cache
from storage.cache.checked_reads import read_footer
from storage.cache.facts import CacheFacts
from storage.objectstore.folder import Folder

# Which facts of a cache the answer of `verify` repeats.
_COUNTS = ("url", "cache_key", "cache_digest", "shards", "samples", "positions", "bytes")


def verify(cache: Cache) -> dict[str, Any]:
    """Hash every shard of a cache again; `ok` is False when one differs, and `problems` names each."""
    problems = _lineage_problems(cache)
    for path, size, sha256 in cache.index.facts("path", "bytes", "sha256"):
        where = cache.store.url_of(path)
        try:
            found_size = cache.store.size(path)
            with cache.store.open(path) as file:
                found = sha256_file(file)
        except FileNotFoundError:
            problems.append(f"The shard {where} is not there.")
            continue
        if found != sha256:
            problems.append(
                f"The shard {where} has {found_size} bytes with the sha256 {found[:16]}; "
                f"{size} bytes with {sha256[:16]} were committed."
            )
    facts = cache.facts()
    counts = {name: facts[name] for name in _COUNTS}
    return {**counts, "ok": not problems, "problems": problems}


def _lineage_problems(cache: Cache) -> list[str]:
    """What `cache.json` says that the index and the shards' own headers do not."""
    try:
        header, schema = read_footer(cache.store, cache.index.commit(0))
    except CorruptShard:
        return []  # hashing that shard says what is wrong with it
    said = cache.to_dict()
    found = CacheFacts.of(cache.index, header, schema, cache.name, cache.lineage).to_dict()
    if "digest" in cache.lineage.get("teacher", {}):
        said["teacher"], found["teacher"] = cache.lineage["teacher"]["digest"], header.teacher
    return [
        f"{cache.url}/cache.json says that {name} is {said[name]}; the shards say {found[name]}."
        for name in said
        if said[name] != found[name]
    ]


def list_caches(store: Folder) -> tuple[list[dict[str, Any]], list[str]]:
    """The facts of every sealed cache under each of its names, and a sentence for each that cannot be read.

    A name is None where none points to the cache any more. Raises NoCache where there is no store.
    """
    if not store.exists():
        raise NoCache(f"There is no store at {store.url}.", "A store is a folder that a teacher's recipe wrote to.")
    named: dict[str, list[str | None]] = {}
    for name in store.names("names"):
        named.setdefault(store.read(f"names/{name}").decode().strip(), []).append(name)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for key in store.names("caches"):
        if not store.exists(f"caches/{key}/cache.json"):
            continue
        try:
            facts = read_cache(store, key).facts()
        except (NoCache, CorruptShard) as error:
            problems.append(str(error))
            continue
        rows += [{**facts, "name": name} for name in named.get(key, [None])]
    return sorted(rows, key=lambda row: (row["name"] is None, row["name"] or "", row["cache_key"])), problems
