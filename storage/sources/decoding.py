"""A Parquet file's rows, decoded in order into tables of bounded memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.samples.pieces import PIECE_BYTES

# A row group that takes more than this to decode is decoded in batches of PIECE_BYTES. Smaller ones are decoded whole
# and kept, so that reading their rows in any order decodes them once.
WHOLE_BYTES = 256 << 20

# What decoding takes for each value inside a list, whatever the value's type: levels, offsets and a 32-bit copy.
_LIST_VALUE_BYTES = 16

# Of a column chunk that is decoded in batches, so much is fetched at once.
_FETCH_BYTES = 8 << 20


@dataclass
class Decoded:
    """Rows [first, first + table.num_rows) of a file, and an iterator over those after them, up to row `stop`.

    empty: a table without rows, given with `more`. Without `more` nothing changes, so that several threads may use it.
    What is decoded is kept up to WHOLE_BYTES, so that the rows of a group that takes no more are decoded once.
    """

    first: int
    table: pa.Table
    stop: int
    more: Iterator[pa.RecordBatch] | None = None
    empty: pa.Table | None = None

    def rows(self, start: int, stop: int) -> Iterator[pa.Table]:
        """Rows [start, stop), as far as they are here; start is not before `first`."""
        while start < stop:
            end = self.first + self.table.num_rows
            if start < end:
                count = min(stop, end) - start
                yield self.table.slice(start - self.first, count)
                start += count
                continue
            if self.more is None:
                return
            assert self.empty is not None
            if self.table.nbytes + PIECE_BYTES > WHOLE_BYTES:
                self.first, self.table = end, self.empty  # frees them before the next ones are decoded
            batch = next(self.more, None)
            if batch is None:
                self.more = None
                return
            self.table = pa.concat_tables([self.table, pa.Table.from_batches([batch])])


class LastDecoded:
    """What was decoded last of any file, to go on from. It is not pickled with its source."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: Any = None
        self._decoded: Decoded | None = None

    def __reduce__(self) -> Any:
        return LastDecoded, ()

    def take(self, key: Any, row: int) -> Decoded | None:
        """What has this row or comes to it. Rows that are decoded one batch after another have one user at a time."""
        with self._lock:
            decoded = self._decoded
            # A forked process has the same open file, and would move its position.
            if decoded is None or self._key != (key, os.getpid()) or not decoded.first <= row < decoded.stop:
                return None
            if decoded.more is not None:
                self._decoded = None
            return decoded

    def put(self, key: Any, decoded: Decoded | None) -> None:
        with self._lock:
            self._key, self._decoded = (key, os.getpid()), decoded


def decode(
    fs: Any, name: str, parquet: pq.ParquetFile, firsts: Sequence[int], groups: range, columns: list[str]
) -> Decoded:
    """The first of some row groups, or as many of them as PIECE_BYTES hold. A large one is decoded step by step.

    firsts: the first row of each row group of the file, and one past the last row.
    """
    metadata = parquet.metadata
    leaves = _leaves(parquet.schema, columns)
    total = 0
    for group in groups:
        size = _bytes_to_decode(metadata.row_group(group), leaves)
        if group == groups.start and size > WHOLE_BYTES:
            rows = max(1, PIECE_BYTES * (firsts[group + 1] - firsts[group]) // size)
            empty = parquet.read_row_groups([], columns=columns)
            more = _batches(fs, name, metadata, group, columns, rows)
            return Decoded(firsts[group], empty, firsts[group + 1], more, empty)
        total += size
        if group > groups.start and total > PIECE_BYTES:
            groups = range(groups.start, group)
            break
    table = parquet.read_row_groups(list(groups), columns=columns)
    return Decoded(firsts[groups.start], table, firsts[groups.stop])


def _batches(
    fs: Any, name: str, metadata: pq.FileMetaData, group: int, columns: list[str], rows: int
) -> Iterator[pa.RecordBatch]:
    # Without a buffer, pyarrow fetches whole column chunks.
    buffer = max(1 << 16, min(_FETCH_BYTES, PIECE_BYTES // max(1, len(columns))))
    with (
        fs.open(name, "rb") as handle,
        pq.ParquetFile(handle, metadata=metadata, buffer_size=buffer, pre_buffer=False) as parquet,
    ):
        yield from parquet.iter_batches(rows, row_groups=[group], columns=columns)


def _leaves(schema: pq.ParquetSchema, columns: Sequence[str]) -> list[tuple[int, int]]:
    """The index of each column chunk of these columns, and the bytes that decoding takes for one of its values."""
    found: list[tuple[int, int]] = []
    for index in range(len(schema)):
        leaf = schema.column(index)
        if any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in columns):
            width = {"FIXED_LEN_BYTE_ARRAY": leaf.length, "INT32": 4, "FLOAT": 4}.get(leaf.physical_type, 8)
            found.append((index, _LIST_VALUE_BYTES if leaf.max_repetition_level else width))
    return found


def _bytes_to_decode(group: pq.RowGroupMetaData, leaves: Sequence[tuple[int, int]]) -> int:
    chunks = [(group.column(index), width) for index, width in leaves]
    return sum(max(chunk.total_uncompressed_size, chunk.num_values * width) for chunk, width in chunks)
