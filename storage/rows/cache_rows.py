"""The rows of a cache's shards: exact byte ranges, checked against their digests, decoded to where they are wanted."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.base.errors import RecipeError, UsageError
from storage.base.names import nearest
from storage.cache.cache import Cache
from storage.cache.checked_reads import footer_metadata, read_checked
from storage.cache.commits import Commit
from storage.encodings import Encoding
from storage.encodings.targets import Targets, with_mask
from storage.format.byte_ranges import RangeFile, chunk_start
from storage.format.header import read_header
from storage.format.rows import DecodedRows
from storage.rows.landing import Chunk, Landing
from storage.rows.row_groups import Arrays, Column, Ints, plain_rows
from storage.samples import tensor_columns
from storage.samples.samples import LABEL, SAMPLE_ID

PARTS = ("inputs", "targets")
# Footers that are kept; a cache may have a hundred thousand, of ten kilobytes and more each.
FOOTERS = 512


class CacheRows:
    """A cache's row groups in stored order. parts: which of inputs and targets are read; ids and labels always are.

    A cache by reference has no inputs: its rows come without any (see `JoinedRows`). extras: plain columns
    that are loaded besides; every shard has them.
    """

    def __init__(self, cache: Cache, parts: Collection[str] = PARTS, extras: Collection[str] = ()) -> None:
        unknown = [part for part in parts if part not in PARTS]
        if unknown:
            raise RecipeError(
                f"'{unknown[0]}' is no part of a cache's rows.{nearest(unknown[0], PARTS)}",
                f"The parts are: {', '.join(PARTS)}.",
            )
        self.cache, self.parts, self._extras = cache, frozenset(parts), frozenset(extras)
        self.rows = self.sizes = cache.index.rows
        self.digest, self.where = cache.digest, cache.url
        self._footer = lru_cache(FOOTERS)(self._read_footer)
        # Shards may have been softened at different temperatures: which encoding each has is seen on the way.
        self._encodings: list[Encoding] = []
        self._encoding_of = np.full(len(cache.index), -1, np.int64)
        self._lock, self._own = threading.Lock(), threading.local()
        self.columns: Sequence[Column] = ()
        self.columns = self._find_columns()

    def __reduce__(self) -> Any:
        return CacheRows, (self.cache, self.parts, self._extras)

    def _find_columns(self) -> Sequence[Column]:
        footer = self._footer(0)
        targets = [f.name for f in footer.fields] if "targets" in self.parts else []
        inputs = self.cache.inputs if "inputs" in self.parts else []
        self._inputs, self._targets = inputs, targets
        return self._columns_of(footer)

    def _columns_of(self, footer: _Footer) -> Sequence[Column]:
        wanted = {SAMPLE_ID, LABEL, *self._inputs, *self._targets, *self._extras}
        return tuple(Column.of(field) for field in footer.schema if field.name in wanted)

    def name_of(self, group: int) -> str:
        index = self.cache.index
        start, stop, _ = index.group(group).part(self.parts)
        return f"row group {index.within[group]} (bytes {start} to {stop}) of {self._url(int(index.shard[group]))}"

    def _url(self, shard: int) -> str:
        return self.cache.store.url_of(self.cache.index.path(shard))

    def loaded_rows(self, group_B: Ints, row_B: Ints) -> Ints:
        return row_B

    def load(self, group: int, out: Arrays) -> Arrays:
        """Raises CorruptShard, which names the shard and the row group, and StoreLost."""
        index = self.cache.index
        footer, within = self._footer(int(index.shard[group])), int(index.within[group])
        start, stop, _ = index.group(group).part(self.parts)
        landing = Landing(footer.chunks(within), start, stop, out, self._scratch(stop - start))
        self._fetch(group, landing.pieces)
        others = [c.name for c in self.columns if c.dtype is None or not landing.decode(c.name, out[c.name])]
        if not others:
            return {}
        table = _decoded(footer, within, others, landing.parts(others))
        read = {name: tensor_columns.unpack(table.column(name), table.schema.field(name)) for name in others}
        for name in [name for name in others if name in out]:
            out[name][:] = read.pop(name)
        return read

    def schema(self, shard: int) -> pa.Schema:
        """The columns that a shard has. Raises CorruptShard."""
        return self._footer(shard).schema

    def table(self, group: int, names: Sequence[str]) -> pa.Table:
        """Columns of a row group as Arrow has them; they lie in what `parts` says. Raises as `load` does."""
        start, stop, _ = self.cache.index.group(group).part(self.parts)
        data = self._scratch(stop - start)
        self._fetch(group, [data])
        footer, within = self._footer(int(self.cache.index.shard[group])), int(self.cache.index.within[group])
        return _decoded(footer, within, names, {start: data.tobytes()})

    def _fetch(self, group: int, pieces: Sequence[memoryview]) -> None:
        """Fill the pieces with a group's bytes, and check them."""
        index, store = self.cache.index, self.cache.store
        start, _, checks = index.group(group).part(self.parts)
        part = f"row group {index.within[group]}"
        read_checked(store, index.path(int(index.shard[group])), start, pieces, checks, part)

    def _scratch(self, size: int) -> memoryview:
        """Memory of this thread's own for bytes on their way."""
        held = getattr(self._own, "bytes", None)
        if held is None or len(held) < size:
            held = self._own.bytes = np.empty(size, np.uint8)
        return held[:size].data

    def _read_footer(self, shard: int) -> _Footer:
        commit = self.cache.index.commit(shard)
        footer = _Footer(self.cache, commit)
        mine = self._columns_of(footer) if self.columns else ()
        # Bytes of another dtype or shape would be taken for what the first shard's are.
        if set(mine) != set(self.columns):
            raise UsageError(
                f"The shard {self._url(shard)} has the columns {_told(mine)}.",
                f"The first one of {self.where} has {_told(self.columns)}.",
                "All shards of a cache have the same columns, types and shapes.",
            )
        with self._lock:
            if footer.encoding not in self._encodings:
                self._encodings.append(footer.encoding)
            self._encoding_of[shard] = self._encodings.index(footer.encoding)
        return footer

    def rows_of(self, group_B: Ints, columns: Arrays) -> DecodedRows:
        rows = plain_rows(columns, self._inputs)
        if not self._targets:
            return rows
        kinds_B = self._encoding_of[self.cache.index.shard[group_B]]
        told = {name: columns[name] for name in self._targets}
        kinds = np.unique(kinds_B).tolist()
        if len(kinds) == 1:
            targets = self._encodings[kinds[0]].decode(told, self.cache.classes)
        else:
            places = [np.flatnonzero(kinds_B == kind) for kind in kinds]
            parts = [
                self._encodings[kind].decode({name: array[at] for name, array in told.items()}, self.cache.classes)
                for kind, at in zip(kinds, places, strict=True)
            ]
            targets = _joined(parts, places)
        return DecodedRows(rows.sample_id, rows.inputs, rows.label, with_mask(targets, rows.label))


def _told(columns: Sequence[Column]) -> str:
    return ", ".join(f"{c.name} {'text' if c.dtype is None else c.dtype}{list(c.shape) or ''}" for c in columns)


def _decoded(footer: _Footer, within: int, names: Sequence[str], parts: dict[int, bytes]) -> pa.Table:
    """Columns of a shard's row group, from parts of the file by where they begin."""
    file = pa.PythonFile(RangeFile(footer.bytes, parts), mode="r")
    # The range's digest was checked, so Parquet's page checksums would check the same bytes twice.
    reader = pq.ParquetFile(file, metadata=footer.metadata, pre_buffer=False)
    return reader.read_row_group(within, columns=list(names), use_threads=False)


def _joined(parts: Sequence[Targets], places: Sequence[Ints]) -> Targets:
    """Targets of several encodings' settings, each part's rows put at its places."""
    count = sum(map(len, places))
    held: list[list[np.ndarray[Any, Any]]] = []
    for part in parts:
        held.append([])
        part.each(held[-1].append)
    columns = zip(*held, strict=True)

    def whole(_: Any) -> np.ndarray[Any, Any]:
        values = next(columns)
        array = np.empty((count, *values[0].shape[1:]), values[0].dtype)
        for at, value in zip(places, values, strict=True):
            array[at] = value
        return array

    return parts[0].each(whole)


class _Footer:
    """What a shard's footer says, after its bytes were checked. Raises CorruptShard."""

    def __init__(self, cache: Cache, commit: Commit) -> None:
        self.bytes = commit.bytes
        self.metadata = footer_metadata(cache.store, commit)
        self.schema = self.metadata.schema.to_arrow_schema()
        header = read_header(self.schema, cache.store.url_of(commit.path))
        self.encoding, self.classes, self.fields = header.encoding, header.classes, header.fields()

    def chunks(self, within: int) -> Iterator[Chunk]:
        """The columns of a row group."""
        group = self.metadata.row_group(within)
        for at, name in enumerate(self.schema.names):
            chunk = group.column(at)
            start = chunk_start(chunk)
            # Where values may be null a page says which are, before the values: so pyarrow reads it.
            codec = "" if self.metadata.schema.column(at).max_definition_level else chunk.compression
            yield Chunk(name, start, start + chunk.total_compressed_size, codec)
