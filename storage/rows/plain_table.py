"""What a cache says of each row in plain columns, in one file beside its index: made once, by the first who asks."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.base.digest import canonical_json, range_digest
from storage.base.errors import RecipeError, StoreError, StoreFull, StoreLost
from storage.base.names import nearest
from storage.cache.cache import Cache
from storage.format.header import METADATA_KEY
from storage.format.position_columns import ENTROPY, TOP1
from storage.rows.cache_rows import CacheRows
from storage.rows.reading import Reading
from storage.samples import tensor_columns
from storage.samples.samples import LABEL, SAMPLE_ID

log = logging.getLogger("stillhouse.stream")

COLUMNS = (SAMPLE_ID, LABEL, ENTROPY, TOP1)
VERSION = 1
_NAME = re.compile(r"plain-([0-9a-f]{32})\.parquet")


def plain_table(cache: Cache, columns: Sequence[str] | None = None) -> pa.Table:
    """Those of COLUMNS that the shards of a cache have, or some of them; all rows, in stored order.

    Taken from the store where somebody put it there; else made from the plain sections, and put there if
    that may be written. Raises RecipeError for columns that are not there, UsageError where shards have
    different ones, CorruptShard and StoreLost.
    """
    data = _kept(cache)
    if data is None:
        data = _to_bytes(cache, _read(cache))
        _keep(cache, data)
    file = pq.ParquetFile(pa.BufferReader(data))
    there = file.schema_arrow.names
    for name in columns or ():
        if name not in there:
            raise _no_column(cache, name, there)
    return file.read(columns=None if columns is None else list(columns))


def _no_column(cache: Cache, name: str, there: Sequence[str]) -> RecipeError:
    if name == TOP1 and cache.positions > cache.samples:
        return RecipeError(
            f"The cache {cache.url} holds sequences, which have a likeliest class a position and none as a whole.",
            f"Rows are chosen by: {', '.join(there)}.",
        )
    return RecipeError(
        f"The cache {cache.url} has no plain column '{name}'.{nearest(name, there)}",
        f"Rows are chosen by: {', '.join(there)}.",
    )


def _kept(cache: Cache) -> bytes | None:
    """The bytes that are in the store, if they are whole and of this cache's very shards."""
    folder = f"caches/{cache.key}"
    for name in cache.store.names(folder):
        digest = _NAME.fullmatch(name)
        if digest is None:
            continue
        try:
            data = cache.store.read(f"{folder}/{name}")
        except FileNotFoundError:
            continue
        if range_digest(data) != digest[1]:
            log.warning(
                "%s is damaged: its bytes do not have the digest that it is named by. The plain columns are read anew.",
                cache.store.url_of(f"{folder}/{name}"),
            )
        elif _is_of(cache).items() <= _told(pq.ParquetFile(pa.BufferReader(data))).items():
            return data
    return None


def _is_of(cache: Cache) -> dict[str, Any]:
    """What such a file says of itself; another cache's digest where the same shards were computed again."""
    return {"plain_version": VERSION, "cache_digest": cache.digest}


def _told(file: pq.ParquetFile) -> dict[str, Any]:
    return json.loads((file.schema_arrow.metadata or {}).get(METADATA_KEY, b"{}"))


def _to_bytes(cache: Cache, table: pa.Table) -> bytes:
    sink, facts = io.BytesIO(), canonical_json(_is_of(cache))
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: facts}), sink, compression="zstd")
    return sink.getvalue()


def _keep(cache: Cache, data: bytes) -> None:
    path = f"caches/{cache.key}/plain-{range_digest(data)}.parquet"
    try:
        # Over a damaged file of that name, too; whoever else writes it writes the same.
        cache.store.write(path, data)
    except (StoreError, StoreFull, StoreLost, OSError, NotImplementedError) as error:
        log.warning("The plain columns are not kept, so that every reader reads them again: %s", error)


def _read(cache: Cache) -> pa.Table:
    """The columns out of every shard's plain sections."""
    rows = CacheRows(cache, (), (ENTROPY, TOP1))
    # The labels of sequences are no property of a row to choose it by.
    fields = {field.name: field for field in rows.schema(0) if not tensor_columns.is_tensor(field)}
    names = [name for name in COLUMNS if name in fields]
    # Of each shard its first row group, and one past the last.
    bounds = np.searchsorted(cache.index.shard, np.arange(len(cache.index) + 1)).tolist()

    def shard(number: int) -> list[pa.Table]:
        return [rows.table(group, names) for group in range(bounds[number], bounds[number + 1])]

    with ThreadPoolExecutor(Reading().threads, thread_name_prefix="plain") as pool:
        tables = list(chain.from_iterable(pool.map(shard, range(len(cache.index)))))
    columns = [
        pa.chunked_array([c for t in tables for c in t.column(name).chunks], fields[name].type) for name in names
    ]
    return pa.Table.from_arrays(columns, names=names)
