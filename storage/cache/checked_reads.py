"""Bytes of committed shards, read against the digests of their commits."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from storage.base.digest import range_digest
from storage.base.errors import CorruptShard
from storage.cache.commits import Commit
from storage.format.shard import ShardHeader, read_header
from storage.objectstore.folder import Folder


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
