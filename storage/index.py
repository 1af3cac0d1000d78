"""The ordered shards of a cache as one Parquet file: a reader opens a cache with a single request."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from storage.commits import Commit

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


def write_index(shards: Sequence[Commit]) -> bytes:
    """The shards of a cache, in their order, as the bytes of `index.parquet`."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([shard.to_dict() for shard in shards], INDEX_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def is_index_of(data: bytes, shards: Sequence[Commit]) -> bool:
    """Whether some bytes are an index of these shards; False also for what is no index."""
    try:
        return read_index(data) == tuple(shards)
    except (pa.ArrowInvalid, OSError, KeyError, TypeError):
        return False


def read_index(data: bytes) -> tuple[Commit, ...]:
    """The shards in an index. Raises what pyarrow raises for bytes that are none."""
    return tuple(Commit.from_dict(row) for row in pq.read_table(io.BytesIO(data)).to_pylist())
