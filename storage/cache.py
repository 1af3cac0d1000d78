"""A sealed, ordered list of shards that knows where it came from."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from storage.commits import Commit, commit_path
from storage.digest import sha256_file, sha256_of
from storage.errors import CorruptShard, NoCache, RecipeError
from storage.folder import Folder
from storage.index import is_index_of, read_index, write_index
from storage.names import NAME_PATTERN, nearest
from storage.ranges import read_footer
from storage.samples import LABEL, input_names
from storage.shard import FORMAT_VERSION, ShardHeader

# What `cache.json` says of a cache, field by field.
_TOLD = (
    "name",
    "encoding",
    "classes",
    "samples",
    "positions",
    "bytes",
    "quarantined",
    "inputs",
    "labelled",
    "lineage",
)


@dataclass(frozen=True)
class Cache:
    """What `cache.json` says, and the shards that the index lists, in their order."""

    store: Folder
    key: str
    digest: str
    name: str
    encoding: dict[str, Any]
    classes: int
    samples: int
    positions: int
    bytes: int
    quarantined: int
    inputs: list[str]
    labelled: bool
    lineage: dict[str, Any]
    shards: tuple[Commit, ...]

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
            "name": self.name,
            "url": self.url,
            "cache_key": self.key,
            "cache_digest": self.digest,
            "encoding": self.encoding,
            "classes": self.classes,
            "shards": len(self.shards),
            "samples": self.samples,
            "positions": self.positions,
            "bytes": self.bytes,
            "quarantined": self.quarantined,
            "inputs": self.inputs,
            "labelled": self.labelled,
            "lineage": self.lineage,
        }


def cache_key(shard_keys: Sequence[str]) -> str:
    """The name of the question: sha256 of the ordered shard keys, known before any work."""
    return sha256_of({"format_version": FORMAT_VERSION, "shards": list(shard_keys)})


def cache_digest(shards: Sequence[Commit]) -> str:
    """The name of the answer: sha256 of [format version, ordered (shard key, shard sha256, rows)]."""
    return sha256_of([FORMAT_VERSION, [[s.shard_key, s.sha256, s.rows] for s in shards]])


def seal(store: Folder, name: str, shards: Sequence[Commit], lineage: dict[str, Any]) -> Cache:
    """Make a cache of committed shards and let `name` point to it. Sealing what is sealed changes nothing.

    `lineage` is kept as it was first sealed. Raises CorruptShard when a shard's footer cannot be read,
    or when the cache was sealed with other files.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise RecipeError(f"'{name}' is no name for a cache.", "It has letters, digits, '.', '_' and '-'.")
    key = cache_key([s.shard_key for s in shards])
    _refuse_absent(store, shards)
    index = write_index(shards)
    if not store.exists(f"caches/{key}/cache.json"):
        header, schema = read_footer(store, shards[0])
        index_path = f"caches/{key}/index.parquet"
        if not store.create(index_path, index):
            # A sealer that died before cache.json left an index; only its rows matter, not its bytes.
            if not is_index_of(store.read(index_path), shards):
                store.write(index_path, index)
            index = store.read(index_path)
        rows = sum(shard.rows for shard in shards)
        facts = {
            "format_version": FORMAT_VERSION,
            "cache_key": key,
            "cache_digest": cache_digest(shards),
            "name": name,
            "index": {"path": "index.parquet", "bytes": len(index), "sha256": _sha256(index)},
            "encoding": header.encoding.to_dict(),
            "classes": header.classes,
            "samples": rows,
            "positions": rows,
            "bytes": sum(shard.bytes for shard in shards),
            "quarantined": sum(len(shard.quarantined) for shard in shards),
            "inputs": stored_inputs(schema, header),
            "labelled": LABEL in schema.names,
            "lineage": lineage,
        }
        store.create(f"caches/{key}/cache.json", json.dumps(facts, indent=1, sort_keys=True).encode())
    cache = read_cache(store, key, known=(index, tuple(shards)))
    if cache.shards != tuple(shards):
        raise CorruptShard(
            f"The cache {cache.url} was sealed with other files than those that are committed now.",
            "A sealed cache's shards stay as they are.",
            "Remove the cache's folder and run the teacher's recipe again to seal what is there.",
        )
    store.write(f"names/{name}", key.encode())
    return cache


def _refuse_absent(store: Folder, shards: Sequence[Commit]) -> None:
    """Look for every shard's file, with one listing for each folder that they lie in."""
    folders = sorted({shard.path.rpartition("/")[0] for shard in shards})
    wanted = {shard.path for shard in shards}
    sizes = {
        path: entry.bytes
        for folder, entries in zip(folders, store.entries_of(folders), strict=True)
        for entry in entries
        if (path := f"{folder}/{entry.name}") in wanted
    }
    for shard in shards:
        size = sizes.get(shard.path)
        if size != shard.bytes:
            found = "is not there" if size is None else f"has {size} bytes"
            raise CorruptShard(
                f"The shard {store.url_of(shard.path)} {found}.",
                f"{shard.bytes} bytes were committed.",
                f"Restore it, or remove {store.url_of(commit_path(shard.shard_key))} to have it computed anew.",
            )


def stored_inputs(schema: pa.Schema, header: ShardHeader) -> list[str]:
    """The names of a shard's inputs, in the model's argument order."""
    targets = {field.name for field in header.encoding.fields(header.classes)}
    return [name for name in input_names(schema) if name not in targets]


def open_cache(url: str) -> Cache:
    """The cache at `<store>/caches/<key>`, `<store>/<name>` or `<store>/<name>@<the key's first digits>`.

    Raises NoCache when there is none or it is not sealed, CorruptShard when its index is damaged.
    """
    store, label = _split(url)
    if not store.exists():
        raise NoCache(f"There is no store at {store.url}.", _FORMS)
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
        raise NoCache(
            f"{store.url} has no cache named '{name}'.{nearest(name, names)}",
            f"Its names are: {', '.join(names) or '(none)'}. {_FORMS}",
            "Run the teacher's recipe to its end: it seals the cache.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise NoCache(f"'{url}' is no cache ({type(error).__name__}).", _FORMS) from None


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


def read_cache(store: Folder, key: str, known: tuple[bytes, tuple[Commit, ...]] | None = None) -> Cache:
    """The cache of a key. Raises NoCache and CorruptShard.

    known: the bytes of an index and the shards in it, for a caller that has both.
    """
    where = store.url_of(f"caches/{key}")
    try:
        facts = json.loads(store.read(f"caches/{key}/cache.json"))
        version, index_sha256 = facts["format_version"], facts["index"]["sha256"]
        told = {name: facts[name] for name in ("cache_digest", *_TOLD)}
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
        index = store.read(f"caches/{key}/index.parquet")
    except FileNotFoundError:
        raise CorruptShard(f"{where}/index.parquet is not there.", "cache.json names it.") from None
    if _sha256(index) != index_sha256:
        raise CorruptShard(
            f"{where}/index.parquet has the sha256 {_sha256(index)[:16]}.",
            f"cache.json names {index_sha256[:16]}.",
            "Restore the file from a copy, or remove the cache's folder and run the teacher's recipe to seal it anew.",
        )
    shards = known[1] if known is not None and known[0] == index else read_index(index)
    digest = told.pop("cache_digest")
    if cache_digest(shards) != digest or cache_key([s.shard_key for s in shards]) != key:
        raise CorruptShard(f"The shards that {where} lists do not give its digest {digest[:16]}.")
    return Cache(store=store, key=key, digest=digest, shards=shards, **told)


def _sha256(data: bytes) -> str:
    return sha256_file(io.BytesIO(data))
