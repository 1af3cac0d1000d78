"""A sealed, ordered list of shards that knows where it came from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from storage.base.errors import CorruptShard, NoCache, RecipeError
from storage.base.names import NAME_PATTERN, nearest
from storage.cache.checked_reads import read_footer
from storage.cache.commits import Commit, commit_path
from storage.cache.facts import CacheFacts
from storage.cache.index import Index, cache_digest, cache_key, index_of, is_index_of, read_index
from storage.format.shard import FORMAT_VERSION
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
            "index": {"path": "index.parquet", "bytes": len(data), "sha256": _sha256(data)},
            **CacheFacts.of(index, header, schema, name, lineage).to_dict(),
        }
        store.create(f"caches/{key}/cache.json", json.dumps(facts, indent=1, sort_keys=True).encode())
    known = (_sha256(data), index)
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


def open_cache(url: str) -> Cache:
    """The cache at `<store>/caches/<key>`, `<store>/<name>` or `<store>/<name>@<the key's first digits>`.

    Raises NoCache when there is none or it is not sealed, CorruptShard when its index is damaged.
    """
    store, label = _split(url)
    if not store.exists():
        raise _not_found(url) or NoCache(f"There is no store at {store.url}.", _FORMS)
    name, _, start = label.partition("@")
    keys = store.names("caches")
    if start:
        near = [key for key in keys if key.startswith(start)]
        if len(near) != 1:
            raise NoCache(f"{len(near)} caches in {store.url} have a key that begins with '{start}'.", "One is needed.")
        return read_cache(store, near[0])
    if name in keys:
        return read_cache(store, name)
    try:
        return read_cache(store, store.read(f"names/{name}").decode().strip())
    except (FileNotFoundError, NotADirectoryError):
        names = store.names("names")
        raise _not_found(url) or NoCache(
            f"{store.url} has no cache named '{name}'.{nearest(name, names)}",
            f"Its names are: {', '.join(names) or '(none)'}. {_FORMS}",
            "Run the teacher's recipe to its end: it seals the cache.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise NoCache(f"'{url}' is no cache ({type(error).__name__}).", _FORMS) from None


def is_store(folder: Folder) -> bool:
    return folder.exists("commits") or folder.exists("caches")


def _not_found(url: str) -> NoCache | None:
    """Why a folder is no cache; None where there is no folder."""
    folder = Folder(url)
    if is_store(folder):
        names = ", ".join(folder.names("names")) or "(none yet)"
        return NoCache(f"{folder.url} is a store, not a cache.", f"Its caches are: {names}. {_FORMS}")
    if folder.exists():
        return NoCache(f"{folder.url} is no cache, and no store: it has neither commits nor caches.", _FORMS)
    return None


_FORMS = "A cache is named as STORE/NAME, STORE/NAME@KEY8 or STORE/caches/KEY."


def _split(url: str) -> tuple[Folder, str]:
    parent, _, last = url.rstrip("/").rpartition("/")
    if not last or not parent:
        raise NoCache(f"'{url}' names no cache.", _FORMS)
    for folder in ("caches", "names"):
        above, _, within = parent.rpartition("/")
        # A store may itself lie in a folder of that name: what is there decides.
        above = above or ("/" if parent.startswith("/") else ".")
        if within == folder and Folder(above).exists(f"{folder}/{last}"):
            return Folder(above), last
    return Folder(parent), last


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
    if (found := _sha256(data)) != index_sha256:
        raise CorruptShard(
            f"{where}/index.parquet has the sha256 {found[:16]}.",
            f"cache.json names {index_sha256[:16]}.",
            "Restore the file from a copy, or remove the cache's folder and run the teacher's recipe to seal it anew.",
        )
    index = known[1] if known is not None and known[0] == found else read_index(data, f"{where}/index.parquet")
    if cache_digest(index) != digest or cache_key(name for (name,) in index.facts("shard_key")) != key:
        raise CorruptShard(f"The shards that {where} lists do not give its digest {digest[:16]}.")
    return Cache(store=store, key=key, digest=digest, index=index, **described.to_dict())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
