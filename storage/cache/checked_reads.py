"""Bytes of committed shards, read against the digests of their commits."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.base.digest import pieces_digests
from storage.base.errors import CorruptShard, StoreLost
from storage.cache.commits import Commit
from storage.format.header import ShardHeader, read_header
from storage.objectstore.folder import Folder

log = logging.getLogger("stillhouse.stream")

_REMEDY = "Restore the file from a copy, or remove the cache, the shard and its commit and run the teacher's recipe."


def read_footer(store: Folder, shard: Commit) -> tuple[ShardHeader, pa.Schema]:
    """What a committed shard says about itself, and its schema. Raises CorruptShard and StoreLost."""
    metadata = footer_metadata(store, shard)
    schema = metadata.schema.to_arrow_schema()
    return read_header(schema, store.url_of(shard.path)), schema


def footer_metadata(store: Folder, shard: Commit) -> pq.FileMetaData:
    """A shard's Parquet footer, after its bytes were checked. Raises CorruptShard and StoreLost."""
    start, stop, _, xxh3 = shard.footer
    data = bytearray(stop - start)
    read_checked(store, shard.path, start, [memoryview(data)], [(stop, xxh3)], "the footer")
    # Parquet finds its footer from the end, so the end alone reads as a file without data.
    return pq.read_metadata(pa.BufferReader(data))


def read_checked(
    store: Folder,
    path: str,
    start: int,
    pieces: Sequence[memoryview],
    checks: Sequence[tuple[int, str]],
    part: str,
) -> None:
    """Fill pieces of memory, one after another, with a shard's bytes from `start` on, and check their digests.

    checks: (stop, xxh3-128) for the bytes from where the one before stops; the last stop is the end of the pieces.
    part: what these bytes are, for messages. Bytes that are wrong, or do not come, are read once more.
    Raises CorruptShard, which names the shard and the part, and StoreLost.
    """
    stop, url = checks[-1][0], store.url_of(path)
    where = f"The shard {url} is damaged: {part} (bytes {start} to {stop})"

    def read() -> None:
        try:
            count = store.read_pieces(path, start, pieces)
        except FileNotFoundError:
            raise CorruptShard(f"The shard {url} is not there.", "The cache lists it.", _REMEDY) from None
        if count < stop - start:
            raise CorruptShard(
                f"{where} was cut off after {count} bytes.", f"{stop - start} bytes were committed.", _REMEDY
            )
        bounds = [start, *(end for end, _ in checks)]
        digests = pieces_digests(pieces, np.diff(bounds).tolist())
        for digest, (_, xxh3) in zip(digests, checks, strict=True):
            if digest != xxh3:
                raise CorruptShard(f"{where} has the digest {digest[:16]}.", f"{xxh3[:16]} was committed.", _REMEDY)

    try:
        read()
    except (CorruptShard, StoreLost) as error:
        log.warning("%s It is fetched again.", error)
        read()
