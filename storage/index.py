"""The ordered shards of a cache as one Parquet file: a reader opens a cache with a single request."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.commits import Commit, Quarantined, collector_at_rest
from storage.shard import ByteRange

T = TypeVar("T")

_PLAIN = ("shard_key", "attempt", "path", "bytes", "sha256", "rows")

_QUARANTINED = pa.struct([("sample_id", pa.string()), ("reason", pa.string())])
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
        ("quarantined", pa.list_(_QUARANTINED)),
    ]
)


def write_index(shards: Sequence[Commit]) -> bytes:
    """The shards of a cache, in their order, as the bytes of `index.parquet`."""
    columns: list[Any] = [
        pa.array([getattr(s, name) for s in shards], INDEX_SCHEMA.field(name).type) for name in _PLAIN
    ]
    columns.append(_list_column([s.row_groups for s in shards], _RANGE))
    columns.append(_struct_column([s.footer for s in shards], _RANGE))
    columns.append(_list_column([s.quarantined for s in shards], _QUARANTINED))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=INDEX_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def _struct_column(items: Sequence[Any], kind: pa.StructType) -> pa.StructArray:
    arrays = [pa.array([getattr(item, field.name) for item in items], field.type) for field in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _list_column(lists: Sequence[Sequence[Any]], kind: pa.StructType) -> pa.ListArray:
    ends = np.cumsum([0, *(len(items) for items in lists)], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, _struct_column([item for items in lists for item in items], kind))


def is_index_of(data: bytes, shards: Sequence[Commit]) -> bool:
    """Whether some bytes are an index of these shards; False also for what is no index."""
    try:
        return read_index(data) == tuple(shards)
    except (pa.ArrowInvalid, OSError, KeyError, TypeError):
        return False


def read_index(data: bytes) -> tuple[Commit, ...]:
    """The shards in an index. Raises what pyarrow raises for bytes that are none."""
    with collector_at_rest():
        return _read(pq.read_table(io.BytesIO(data)))


def _read(table: pa.Table) -> tuple[Commit, ...]:
    # Column by column: a row at a time takes five times as long, and a cache may have 100,000 shards.
    plain = [table.column(name).to_pylist() for name in _PLAIN]
    groups = _lists(table.column("row_groups"), _ranges)
    footers = _ranges(table.column("footer").combine_chunks())
    quarantined: list[tuple[Quarantined, ...]] = [()] * table.num_rows
    if "quarantined" in table.column_names:
        quarantined = _lists(table.column("quarantined"), _quarantined)
    return tuple(map(Commit, *plain, groups, footers, quarantined))


def _ranges(structs: Any) -> list[ByteRange]:
    return list(map(ByteRange, *(structs.field(name).to_pylist() for name in ("start", "stop", "rows", "xxh3"))))


def _quarantined(structs: Any) -> list[Quarantined]:
    return list(map(Quarantined, structs.field("sample_id").to_pylist(), structs.field("reason").to_pylist()))


def _lists(column: pa.ChunkedArray, read: Callable[[Any], list[T]]) -> list[tuple[T, ...]]:
    """What each row of a column of lists holds, as a tuple."""
    array: Any = column.combine_chunks()
    values, ends = read(array.flatten()), [0, *np.cumsum(array.value_lengths().to_numpy()).tolist()]
    return [tuple(values[start:stop]) for start, stop in pairwise(ends)]
