"""Make a cache of committed shards: cache.json last, so that a cache is whole once it is there."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from storage.base.digest import sha256_bytes
from storage.base.errors import CorruptShard, RecipeError
from storage.base.names import NAME_PATTERN
from storage.cache.cache import Cache, read_cache
from storage.cache.checked_reads import read_footer
from storage.cache.commits import Commit, commit_path
from storage.cache.facts import CacheFacts
from storage.cache.index import index_of, is_index_of
from storage.cache.keys import cache_digest, cache_key
from storage.format.header import FORMAT_VERSION
from storage.objectstore.folder import Folder


def seal(store: Folder, name: str, shards: Sequence[Commit], lineage: dict[str, Any]) -> Cache:
    """Make a cache of committed shards and let `name` point to it. Sealing what is sealed changes nothing.

    `lineage` is kept as it was first sealed. Raises CorruptShard when a shard's footer cannot be read,
    or when the cache was sealed with other files.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise RecipeError(f"'{name}' is no name for a cache.", "It has letters, digits, '.', '_' and '-'.")
    key = cache_key(shard.shard_key for shard in shards)
    _refuse_absent(store, shards)
    index = index_of(shards)
    data = index.to_bytes()
    if not store.exists(f"caches/{key}/cache.json"):
        header, schema = read_footer(store, shards[0])
        index_path = f"caches/{key}/index.parquet"
        if not store.create(index_path, data):
            # A sealer that died before cache.json left an index; only its rows matter, not its bytes.
            if not is_index_of(store.read(index_path), index):
                store.write(index_path, data)
            data = store.read(index_path)
        facts = {
            "format_version": FORMAT_VERSION,
            "cache_key": key,
            "cache_digest": cache_digest(index),
            "index": {"path": "index.parquet", "bytes": len(data), "sha256": sha256_bytes(data)},
            **CacheFacts.of(index, header, schema, name, lineage).to_dict(),
        }
        store.create(f"caches/{key}/cache.json", json.dumps(facts, indent=1, sort_keys=True).encode())
    known = (sha256_bytes(data), index)
    del data  # as much as the commits take, or half of it
    cache = read_cache(store, key, known)
    if cache.index != index:
        raise CorruptShard(
            f"The cache {cache.url} was sealed with other files than those that are committed now.",
            "A sealed cache's shards stay as they are.",
            "Remove the cache's folder and run the teacher's recipe again to seal what is there.",
        )
    store.write(f"names/{name}", key.encode())
    return cache


def _refuse_absent(store: Folder, shards: Sequence[Commit]) -> None:
    """Look for every shard's file, with one listing for each folder that they lie in."""
    within: dict[str, list[Commit]] = {}
    for shard in shards:
        within.setdefault(shard.path.rpartition("/")[0], []).append(shard)
    folders = sorted(within)
    for folder, entries in zip(folders, store.entries_of(folders), strict=True):
        sizes = {entry.name: entry.bytes for entry in entries}
        for shard in within[folder]:
            size = sizes.get(shard.path[len(folder) + 1 :])
            if size != shard.bytes:
                found = "is not there" if size is None else f"has {size} bytes"
                raise CorruptShard(
                    f"The shard {store.url_of(shard.path)} {found}.",
                    f"{shard.bytes} bytes were committed.",
                    f"Restore it, or remove {store.url_of(commit_path(shard.shard_key))} to have it computed anew.",
                )
