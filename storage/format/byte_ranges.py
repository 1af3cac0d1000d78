"""The byte ranges of a shard file: found once it is written, and read as if the whole file were there."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from storage.base.digest import range_digest
from storage.format.header import read_header
from storage.format.sections import ByteRange, RowGroup, section_of, section_stops


def chunk_start(chunk: Any) -> int:
    """Where a column chunk begins: at its dictionary, where another writer gave it one, which comes before the data."""
    return min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)


def byte_ranges(path: Path) -> tuple[list[RowGroup], ByteRange]:
    """The row groups of a shard file, and its footer, with their digests; read back from the disk.

    Raises CorruptShard for a Parquet file that is no shard.
    """
    metadata = pq.read_metadata(path)
    schema = metadata.schema.to_arrow_schema()
    targets = {field.name for field in read_header(schema, str(path)).fields()}
    kinds = [section_of(name, targets) for name in schema.names]
    groups: list[RowGroup] = []
    with open(path, "rb") as file:
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            columns = [group.column(c) for c in range(group.num_columns)]
            places = [(chunk_start(c), chunk_start(c) + c.total_compressed_size) for c in columns]
            start, stop = min(place[0] for place in places), max(place[1] for place in places)
            file.seek(start)
            data = memoryview(file.read(stop - start))
            cuts = [start, *section_stops(places, kinds)]
            inputs, plain, targets = (range_digest(data[a - start : b - start]) for a, b in pairwise(cuts))
            whole = ByteRange(start, stop, group.num_rows, range_digest(data))
            groups.append(RowGroup(*whole, cuts[1], inputs, cuts[2], plain, targets))
        start = groups[-1].stop if groups else 4
        file.seek(start)
        rest = file.read()
    return groups, ByteRange(start, start + len(rest), 0, range_digest(rest))


class RangeFile(io.RawIOBase):
    """The few byte ranges of a file that were fetched, read as if the whole file were there."""

    def __init__(self, size: int, parts: dict[int, bytes]) -> None:
        super().__init__()
        self._size, self._parts, self._place = size, parts, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._place + size)
        for start, data in self._parts.items():
            if start <= self._place and stop <= start + len(data):
                piece = data[self._place - start : stop - start]
                self._place = stop
                return piece
        raise OSError(f"bytes [{self._place}, {stop}) were not fetched")
