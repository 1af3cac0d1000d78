"""A sealed, ordered list of shards that knows where it came from."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.commits import Commit, commit_path
from storage.digest import range_digest, sha256_file, sha256_of
from storage.errors import CorruptShard, NoCache, RecipeError
from storage.folder import Folder
from storage.names import NAME_PATTERN, nearest
from storage.samples import LABEL, input_names
from storage.shard import FORMAT_VERSION, ShardHeader, read_header

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
_RANGE = pa.struct([("start", pa.int64()), ("stop", pa.int64()), ("rows", pa.int64()), ("xxh3", pa.string())])
INDEX_SCHEMA = pa.schema(
    [
        ("shard_key", pa.string()),
        ("attempt", pa.string()),
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("rows", pa.int64()),
        ("row_groups", pa.list_(_RANGE)),
        ("footer", _RANGE),
    ]
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
    for shard in shards:
        _refuse_absent(store, shard)
    if not store.exists(f"caches/{key}/cache.json"):
        header, schema = read_footer(store, shards[0])
        index = _write_index(shards)
        index_path = f"caches/{key}/index.parquet"
        if not store.create(index_path, index):
            # A sealer that died before cache.json left an index; only its rows matter, not its bytes.
            if not _is_index_of(store.read(index_path), shards):
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
            "quarantined": 0,
            "inputs": _inputs(schema, header),
            "labelled": LABEL in schema.names,
            "lineage": lineage,
        }
        store.create(f"caches/{key}/cache.json", json.dumps(facts, indent=1, sort_keys=True).encode())
    cache = read_cache(store, key)
    if cache.shards != tuple(shards):
        raise CorruptShard(
            f"The cache {cache.url} was sealed with other files than those that are committed now.",
            "A sealed cache's shards stay as they are.",
            "Remove the cache's folder and run the teacher's recipe again to seal what is there.",
        )
    store.write(f"names/{name}", key.encode())
    return cache


def _refuse_absent(store: Folder, shard: Commit) -> None:
    try:
        size = store.size(shard.path)
    except FileNotFoundError:
        size = None
    if size != shard.bytes:
        found = "is not there" if size is None else f"has {size} bytes"
        raise CorruptShard(
            f"The shard {store.url_of(shard.path)} {found}.",
            f"{shard.bytes} bytes were committed.",
            f"Restore it, or remove {store.url_of(commit_path(shard.shard_key))} to have it computed anew.",
        )


def _inputs(schema: pa.Schema, header: ShardHeader) -> list[str]:
    targets = {field.name for field in header.encoding.fields(header.classes)}
    return [name for name in input_names(schema) if name not in targets]


def read_footer(store: Folder, shard: Commit) -> tuple[ShardHeader, pa.Schema]:
    """What a committed shard says about itself, and its schema. Raises CorruptShard."""
    metadata = footer_metadata(store, shard)
    schema = metadata.schema.to_arrow_schema()
    return read_header(schema, store.url_of(shard.path)), schema


def footer_metadata(store: Folder, shard: Commit) -> pq.FileMetaData:
    """A shard's Parquet footer, after its bytes were checked. Raises CorruptShard."""
    data = read_checked(store, shard, shard.footer.start, shard.footer.stop, shard.footer.xxh3, "the footer")
    # Parquet finds its footer from the end, so the end alone reads as a file without data.
    return pq.read_metadata(pa.BufferReader(data))


def read_checked(store: Folder, shard: Commit, start: int, stop: int, xxh3: str, part: str) -> bytes:
    """Bytes [start, stop) of a shard, against the digest of its commit. Raises CorruptShard."""
    where = store.url_of(shard.path)
    remedy = "Restore the file from a copy, or remove the cache, the shard and its commit and run the teacher's recipe."
    try:
        data = store.read_range(shard.path, start, stop)
    except FileNotFoundError:
        raise CorruptShard(f"The shard {where} is not there.", "The cache lists it.", remedy) from None
    found = range_digest(data)
    if found != xxh3:
        raise CorruptShard(
            f"The shard {where} is damaged: {part} (bytes {start} to {stop}) has the digest {found[:16]}.",
            f"{xxh3[:16]} was committed.",
            remedy,
        )
    return data


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


def read_cache(store: Folder, key: str) -> Cache:
    """The cache of a key. Raises NoCache and CorruptShard."""
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
    shards = _read_index(index)
    digest = told.pop("cache_digest")
    if cache_digest(shards) != digest or cache_key([s.shard_key for s in shards]) != key:
        raise CorruptShard(f"The shards that {where} lists do not give its digest {digest[:16]}.")
    return Cache(store=store, key=key, digest=digest, shards=shards, **told)


def verify(cache: Cache) -> dict[str, Any]:
    """Hash every shard of a cache again; `ok` is False when one differs, and `problems` names each."""
    problems = _lineage_problems(cache)
    for shard in cache.shards:
        where = cache.store.url_of(shard.path)
        try:
            size = cache.store.size(shard.path)
            with cache.store.open(shard.path) as file:
                found = sha256_file(file)
        except FileNotFoundError:
            problems.append(f"The shard {where} is not there.")
            continue
        if found != shard.sha256:
            problems.append(
                f"The shard {where} has {size} bytes with the sha256 {found[:16]}; "
                f"{shard.bytes} bytes with {shard.sha256[:16]} were committed."
            )
    return {**_counts(cache), "ok": not problems, "problems": problems}


def _lineage_problems(cache: Cache) -> list[str]:
    """What `cache.json` says that the index and the shards' own headers do not."""
    said = {"samples": cache.samples, "positions": cache.positions, "bytes": cache.bytes}
    rows, size = sum(shard.rows for shard in cache.shards), sum(shard.bytes for shard in cache.shards)
    found: dict[str, Any] = {"samples": rows, "positions": rows, "bytes": size}
    try:
        header, schema = read_footer(cache.store, cache.shards[0])
    except CorruptShard:
        return []  # hashing that shard says what is wrong with it
    said |= {"classes": cache.classes, "encoding": cache.encoding, "inputs": cache.inputs, "labelled": cache.labelled}
    found |= {"classes": header.classes, "encoding": header.encoding.to_dict(), "inputs": _inputs(schema, header)}
    found["labelled"] = LABEL in schema.names
    if "digest" in cache.lineage.get("teacher", {}):
        said["teacher"], found["teacher"] = cache.lineage["teacher"]["digest"], header.teacher
    return [
        f"{cache.url}/cache.json says that {name} is {said[name]}; the shards say {found[name]}."
        for name in said
        if said[name] != found[name]
    ]


def _counts(cache: Cache) -> dict[str, Any]:
    facts = cache.facts()
    return {
        name: facts[name] for name in ("url", "cache_key", "cache_digest", "shards", "samples", "positions", "bytes")
    }


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


def _write_index(shards: Sequence[Commit]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([shard.to_dict() for shard in shards], INDEX_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def _is_index_of(data: bytes, shards: Sequence[Commit]) -> bool:
    try:
        return _read_index(data) == tuple(shards)
    except (pa.ArrowInvalid, OSError, KeyError, TypeError):
        return False


def _read_index(data: bytes) -> tuple[Commit, ...]:
    return tuple(Commit.from_dict(row) for row in pq.read_table(io.BytesIO(data)).to_pylist())


def _sha256(data: bytes) -> str:
    return sha256_file(io.BytesIO(data))
