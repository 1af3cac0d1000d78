"""A sealed, ordered list of shards that knows where it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from storage.base.digest import sha256_bytes
from storage.base.errors import CorruptShard, NoCache
from storage.cache.commits import Commit
from storage.cache.facts import CacheFacts
from storage.cache.index import Index, read_index
from storage.cache.keys import cache_digest, cache_key
from storage.format.header import FORMAT_VERSION
from storage.objectstore.folder import Folder


@dataclass(frozen=True, kw_only=True)
class Cache(CacheFacts):
    """A sealed cache: what `cache.json` says, and the shards that the index lists, in their order."""

    store: Folder
    key: str
    digest: str
    index: Index

    @cached_property
    def shards(self) -> tuple[Commit, ...]:
        """Every shard as an object, made when it is first asked for; `index` has the same in columns."""
        return self.index.commits()

    @property
    def url(self) -> str:
        return self.store.url_of(f"caches/{self.key}")

    @property
    def label(self) -> str:
        """Name and digest as people say them: `digits@1f3a9c04` (the first eight of the key)."""
        return f"{self.name}@{self.key[:8]}"

    def facts(self) -> dict[str, Any]:
        """The answer of `storage show`, without the shards."""
        return {
            **self.to_dict(),
            "url": self.url,
            "cache_key": self.key,
            "cache_digest": self.digest,
            "shards": len(self.index),
        }


def read_cache(store: Folder, key: str, known: tuple[str, Index] | None = None) -> Cache:
    """The cache of a key. Raises NoCache and CorruptShard.

    known: the sha256 of an index's bytes and what is in them, for a caller that has both.
    """
    where = store.url_of(f"caches/{key}")
    try:
        facts = json.loads(store.read(f"caches/{key}/cache.json"))
        version, index_sha256 = facts["format_version"], facts["index"]["sha256"]
        digest, described = facts["cache_digest"], CacheFacts.from_dict(facts)
    except (FileNotFoundError, NotADirectoryError):
        raise NoCache(
            f"The cache {where} is not sealed: it has no cache.json.",
            "A cache is whole once cache.json is there.",
            "Run the teacher's recipe again: it computes only what is missing and seals it.",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise NoCache(
            f"{where}/cache.json is not the cache.json of a cache.", "It is JSON that `seal` wrote."
        ) from None
    if version != FORMAT_VERSION:
        raise NoCache(f"{where} has the format version {version}.", f"This version reads {FORMAT_VERSION}.")
    try:
        data = store.read(f"caches/{key}/index.parquet")
    except FileNotFoundError:
        raise CorruptShard(f"{where}/index.parquet is not there.", "cache.json names it.") from None
    if (found := sha256_bytes(data)) != index_sha256:
        raise CorruptShard(
            f"{where}/index.parquet has the sha256 {found[:16]}.",
            f"cache.json names {index_sha256[:16]}.",
            "Restore the file from a copy, or remove the cache's folder and run the teacher's recipe to seal it anew.",
        )
    index = known[1] if known is not None and known[0] == found else read_index(data, f"{where}/index.parquet")
    if cache_digest(index) != digest or cache_key(name for (name,) in index.facts("shard_key")) != key:
        raise CorruptShard(f"The shards that {where} lists do not give its digest {digest[:16]}.")
    return Cache(store=store, key=key, digest=digest, index=index, **described.to_dict())
