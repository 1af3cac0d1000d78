"""The ordered shards of a cache as columns, and as the one Parquet file that a reader opens a cache with."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.base.digest import canonical_json
from storage.base.errors import CorruptShard
from storage.cache.commits import Commit, Quarantined, collector_at_rest
from storage.format.sections import SECTIONS, ByteRange, Section
from storage.format.shard import FORMAT_VERSION

T = TypeVar("T")
Ints = np.ndarray[Any, np.dtype[np.int64]]
Numbers = np.ndarray[Any, np.dtype[np.int32]]

_AT_ONCE = 4096
_PLAIN = ("shard_key", "attempt", "path", "bytes", "sha256", "rows")

_QUARANTINED = pa.struct([("sample_id", pa.string()), ("reason", pa.string())])
_RANGE = pa.struct([("start", pa.int64()), ("stop", pa.int64()), ("rows", pa.int64()), ("xxh3", pa.string())])
# The last section stops where its row group does.
_SECTIONS = [
    ("inputs_stop", pa.int64()),
    ("inputs_xxh3", pa.string()),
    ("plain_stop", pa.int64()),
    ("plain_xxh3", pa.string()),
    ("targets_xxh3", pa.string()),
]
_GROUP = pa.struct([*_RANGE, *_SECTIONS])
INDEX_SCHEMA = pa.schema(
    [
        ("shard_key", pa.string()),
        ("attempt", pa.string()),
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("rows", pa.int64()),
        ("row_groups", pa.list_(_GROUP)),
        ("footer", _RANGE),
        ("quarantined", pa.list_(_QUARANTINED)),
    ]
)


class Index:
    """The shards of a cache in their order, and their row groups, numbered through all shards.

    rows, start, stop: [R] of each row group. shard: [R] the number of the shard that it lies in.
    within: [R] its number in that shard. A cache may have millions of row groups, so none is an object.
    """

    def __init__(self, table: pa.Table) -> None:
        """table: columns as INDEX_SCHEMA has them; use `index_of` or `read_index`."""
        self._columns = {name: _whole(table.column(name)) for name in INDEX_SCHEMA.names}
        groups: Any = self._columns["row_groups"]
        counts, self._groups = np.diff(_numbers(groups.offsets, np.int32)), groups.flatten()
        self.rows, self.start, self.stop = (self._ints(name) for name in ("rows", "start", "stop"))
        self.shard: Numbers = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        firsts = (np.cumsum(counts) - counts).astype(np.int32)
        self.within: Numbers = np.arange(len(self.rows), dtype=np.int32) - np.repeat(firsts, counts)
        self._stops = {"inputs": self._ints("inputs_stop"), "plain": self._ints("plain_stop"), "targets": self.stop}
        self._xxh3 = {name: self._groups.field(f"{name}_xxh3") for name in SECTIONS}

    def _ints(self, name: str) -> Ints:
        return _numbers(self._groups.field(name), np.int64)

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

    def path(self, shard: int) -> str:
        return self._columns["path"][shard].as_py()

    def range(self, group: int, parts: Collection[str]) -> tuple[int, int, list[tuple[int, str]]]:
        """The bytes [start, stop) of a row group that hold some of its SECTIONS, and what to check in them.

        That is a list of (stop, xxh3), each for the bytes from where the one before stops. Plain columns are
        always among them.
        """
        start = int(self.start[group])
        wanted = [name for name in SECTIONS if name == "plain" or name in parts]
        checks = [(int(self._stops[name][group]), self._xxh3[name][group].as_py()) for name in wanted]
        return start if wanted[0] == "inputs" else int(self._stops["inputs"][group]), checks[-1][0], checks

    def commit(self, shard: int) -> Commit:
        return self._commits(shard, 1)[0]

    def commits(self) -> tuple[Commit, ...]:
        """Every shard as an object: a kilobyte each, and some more for each row group."""
        with collector_at_rest():
            return self._commits(0, len(self))

    def _commits(self, first: int, count: int) -> tuple[Commit, ...]:
        # Column by column: a row at a time takes five times as long, and a cache may have 100,000 shards.
        columns = {name: column.slice(first, count) for name, column in self._columns.items()}
        plain = [columns[name].to_pylist() for name in _PLAIN]
        groups, quarantined = _lists(columns["row_groups"], _groups), _lists(columns["quarantined"], _quarantined)
        return tuple(map(Commit, *plain, groups, _ranges(columns["footer"]), quarantined))

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


def cache_key(shard_keys: Iterable[str]) -> str:
    """The name of the question: sha256 of {format version, the ordered shard keys}, known before any work."""
    return _sha256_of(b'{"format_version":%d,"shards":[' % FORMAT_VERSION, shard_keys, b"]}")


def cache_digest(index: Index) -> str:
    """The name of the answer: sha256 of [format version, ordered (shard key, shard sha256, rows)]."""
    return _sha256_of(b"[%d,[" % FORMAT_VERSION, index.facts("shard_key", "sha256", "rows"), b"]]")


def _sha256_of(head: bytes, items: Iterable[Any], tail: bytes) -> str:
    """sha256 of canonical JSON that has a list in it; some items at a time, since a cache may have 100,000 shards."""
    digest, left = hashlib.sha256(head), iter(items)
    comma = b""
    while some := list(islice(left, _AT_ONCE)):
        digest.update(comma + canonical_json(some)[1:-1])
        comma = b","
    digest.update(tail)
    return digest.hexdigest()


def index_of(shards: Sequence[Commit]) -> Index:
    """The index of some shards, in their order."""
    columns: list[Any] = [
        pa.array([getattr(s, name) for s in shards], INDEX_SCHEMA.field(name).type) for name in _PLAIN
    ]
    groups = [group for shard in shards for group in shard.row_groups]
    arrays = [*_struct_column(groups, _RANGE).flatten(), *_section_arrays([group.sections for group in groups])]
    groups_column = pa.StructArray.from_arrays(arrays, fields=list(_GROUP))
    columns.append(_list_column([len(s.row_groups) for s in shards], groups_column))
    columns.append(_struct_column([s.footer for s in shards], _RANGE))
    quarantined = _struct_column([sample for s in shards for sample in s.quarantined], _QUARANTINED)
    columns.append(_list_column([len(s.quarantined) for s in shards], quarantined))
    return Index(pa.Table.from_arrays(columns, schema=INDEX_SCHEMA))


def _struct_column(items: Sequence[Any], kind: pa.StructType) -> pa.StructArray:
    arrays = [pa.array([getattr(item, field.name) for item in items], field.type) for field in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _section_arrays(sections: Sequence[tuple[Section, ...]]) -> list[pa.Array]:
    def facts(name: str) -> list[Any]:
        of, fact = name.split("_")
        number = SECTIONS.index(of)
        return [getattr(some[number], fact) for some in sections]

    return [pa.array(facts(name), kind) for name, kind in _SECTIONS]


def _list_column(lengths: Sequence[int], values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.cumsum([0, *lengths], dtype=np.int32), values)


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
        # What a later version added is left alone.
        lists: Any = _whole(columns["row_groups"])
        arrays = [lists.values.field(field.name) for field in _GROUP]
        if any(array.null_count for array in arrays):
            raise ValueError("a row group lacks a section")
        whole = pa.StructArray.from_arrays(arrays, fields=list(_GROUP))
        columns["row_groups"] = pa.chunked_array([pa.ListArray.from_arrays(lists.offsets, whole)])
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


def _groups(structs: Any) -> list[ByteRange]:
    facts = [structs.field(name).to_pylist() for name in ("start", "stop", "rows", "xxh3")]
    return list(map(ByteRange, *facts, _sections(structs)))


def _sections(structs: Any) -> list[tuple[Section, ...]]:
    columns = [structs.field(name).to_pylist() for name, _ in _SECTIONS]
    stops = structs.field("stop").to_pylist()
    return [
        (Section(inputs, inputs_xxh3), Section(plain, plain_xxh3), Section(stop, xxh3))
        for inputs, inputs_xxh3, plain, plain_xxh3, xxh3, stop in zip(*columns, stops, strict=True)
    ]


def _ranges(structs: Any) -> list[ByteRange]:
    return list(map(ByteRange, *(structs.field(name).to_pylist() for name in ("start", "stop", "rows", "xxh3"))))


def _quarantined(structs: Any) -> list[Quarantined]:
    return list(map(Quarantined, structs.field("sample_id").to_pylist(), structs.field("reason").to_pylist()))


def _lists(array: Any, read: Callable[[Any], list[T]]) -> list[tuple[T, ...]]:
    """What each row of a column of lists holds, as a tuple."""
    values, offsets = read(array.flatten()), _numbers(array.offsets, np.int32)
    return [tuple(values[start:stop]) for start, stop in pairwise((offsets - offsets[0]).tolist())]
