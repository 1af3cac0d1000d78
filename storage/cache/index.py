"""The ordered shards of a cache as columns, and as the one Parquet file that a reader opens a cache with."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.base.errors import CorruptShard
from storage.cache.commits import PLAIN, Commit, Quarantined, collector_at_rest
from storage.format.sections import ByteRange, RowGroup

T = TypeVar("T", ByteRange, RowGroup, Quarantined)
Ints = np.ndarray[Any, np.dtype[np.int64]]
Numbers = np.ndarray[Any, np.dtype[np.int32]]

_AT_ONCE = 4096

_ARROW = {int: pa.int64(), str: pa.string()}


def _struct(kind: type[Any]) -> pa.StructType:
    """The Arrow type of a NamedTuple of numbers and texts."""
    return pa.struct([(name, _ARROW[of]) for name, of in get_type_hints(kind).items()])


INDEX_SCHEMA = pa.schema(
    [
        *((name, _ARROW[of]) for name, of in get_type_hints(Commit).items() if name in PLAIN),
        ("row_groups", pa.list_(_struct(RowGroup))),
        ("footer", _struct(ByteRange)),
        ("quarantined", pa.list_(_struct(Quarantined))),
    ]
)


class Index:
    """The shards of a cache in their order, and their row groups, numbered through all shards.

    rows: [R] of each row group. shard: [R] the number of the shard that it lies in. within: [R] its number in that
    shard. A cache may have millions of row groups, so they are kept as columns, and `group` makes an object of one.
    """

    def __init__(self, table: pa.Table) -> None:
        """table: columns as INDEX_SCHEMA has them; use `index_of` or `read_index`."""
        self._columns = {name: _whole(table.column(name)) for name in INDEX_SCHEMA.names}
        groups: Any = self._columns["row_groups"]
        counts, structs = np.diff(_numbers(groups.offsets, np.int32)), groups.flatten()
        self._groups = [structs.field(name) for name in RowGroup._fields]
        self.rows: Ints = _numbers(structs.field("rows"), np.int64)
        self.shard: Numbers = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        firsts = (np.cumsum(counts) - counts).astype(np.int32)
        self.within: Numbers = np.arange(len(self.rows), dtype=np.int32) - np.repeat(firsts, counts)

    def __len__(self) -> int:
        """The number of shards."""
        return len(self._columns["shard_key"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and self._columns == other._columns

    __hash__ = None  # type: ignore[assignment]

    def facts(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Of each shard some of shard_key, attempt, path, bytes, sha256 and rows."""
        for first in range(0, len(self), _AT_ONCE):
            yield from zip(*(self._columns[name].slice(first, _AT_ONCE).to_pylist() for name in names), strict=True)

    @property
    def quarantined(self) -> int:
        """The number of samples that the shards do not have."""
        return len(self._columns["quarantined"].flatten())

    def path(self, shard: int) -> str:
        return self._columns["path"][shard].as_py()

    def group(self, group: int) -> RowGroup:
        return RowGroup(*(column[group].as_py() for column in self._groups))

    def commit(self, shard: int) -> Commit:
        return self._commits(shard, 1)[0]

    def commits(self) -> tuple[Commit, ...]:
        """Every shard as an object: a kilobyte each, and some more for each row group."""
        with collector_at_rest():
            return self._commits(0, len(self))

    def _commits(self, first: int, count: int) -> tuple[Commit, ...]:
        # Column by column: a row at a time takes five times as long, and a cache may have 100,000 shards.
        columns = {name: column.slice(first, count) for name, column in self._columns.items()}
        plain = [columns[name].to_pylist() for name in PLAIN]
        groups, footers = _lists(RowGroup, columns["row_groups"]), _tuples(ByteRange, columns["footer"])
        return tuple(map(Commit, *plain, groups, footers, _lists(Quarantined, columns["quarantined"])))

    def to_bytes(self) -> bytes:
        """The bytes of `index.parquet`."""
        sink = io.BytesIO()
        table = pa.table([self._columns[name] for name in INDEX_SCHEMA.names], schema=INDEX_SCHEMA)
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue()


def _numbers(array: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """A view; Arrow's own would import pandas, which a reader has no other use for."""
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * np.dtype(dtype).itemsize)


def _whole(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def index_of(shards: Sequence[Commit]) -> Index:
    """The index of some shards, in their order."""
    columns = [pa.array([getattr(shard, field.name) for shard in shards], field.type) for field in INDEX_SCHEMA]
    return Index(pa.Table.from_arrays(columns, schema=INDEX_SCHEMA))


def is_index_of(data: bytes, index: Index) -> bool:
    """Whether some bytes are an index of the same shards; False also for what is no index."""
    try:
        return read_index(data) == index
    except CorruptShard:
        return False


def read_index(data: bytes, where: str = "index.parquet") -> Index:
    """The index in some bytes. Raises CorruptShard, which names `where`, for bytes that are no index."""
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
        columns = {name: table.column(name) for name in INDEX_SCHEMA.names}
        # What a later version added is ignored.
        lists: Any = _whole(columns["row_groups"])
        arrays = [lists.values.field(name) for name in RowGroup._fields]
        if any(array.null_count for array in arrays):
            raise ValueError("a row group lacks a section")
        groups = pa.StructArray.from_arrays(arrays, fields=list(_struct(RowGroup)))
        columns["row_groups"] = pa.chunked_array([pa.ListArray.from_arrays(lists.offsets, groups)])
        index = Index(pa.table(columns))
    except (ValueError, KeyError, TypeError, OSError) as error:  # pyarrow's errors are among them
        raise CorruptShard(
            f"{where} is no index of a cache ({type(error).__name__}: {error}).",
            "It is a Parquet file with the columns that storage/FORMAT.md names.",
            "Remove the cache's folder and run the teacher's recipe to seal it anew.",
        ) from error
    # What decoding took is half as much again, and Arrow would keep it.
    pa.default_memory_pool().release_unused()
    return index


def _tuples(kind: Callable[..., T], structs: Any) -> list[T]:
    return list(map(kind, *(structs.field(name).to_pylist() for name in kind._fields)))  # type: ignore[attr-defined]


def _lists(kind: Callable[..., T], array: Any) -> list[tuple[T, ...]]:
    """Of each row of a column of lists its structs, as a tuple."""
    values, offsets = _tuples(kind, array.flatten()), _numbers(array.offsets, np.int32)
    return [tuple(values[start:stop]) for start, stop in pairwise((offsets - offsets[0]).tolist())]
