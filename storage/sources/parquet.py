"""Samples in Parquet files behind any fsspec URL: one file, a folder of them, or a pattern."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.objectstore.filesystem import open_filesystem
from storage.samples.arrow_types import plain_table
from storage.samples.column_roles import Roles, add_ranges, pandas_index, pandas_ranges
from storage.samples.columns import Columns
from storage.samples.pieces import concat_samples
from storage.samples.samples import SourceFile, as_samples, sample_ids
from storage.sources.decoding import LastDecoded, decode
from storage.sources.files.file_list import FileList, list_files, root_of
from storage.sources.files.located import Version, inside, reading
from storage.sources.files.partitions import NO_PARTITIONS, Partitions

KIND = "Parquet"
# Of the files in a folder.
ENDINGS = (".parquet", ".pq", ".parq")


@dataclass(frozen=True)
class ParquetSource:
    parquet: str
    columns: Columns = Columns()

    def files(self) -> Sequence[SourceFile]:
        listed = self.__dict__["_listed"] = list_files(self.parquet, ENDINGS, KIND)
        self.__dict__["_all_partitions"] = Partitions.of(self._root, listed.names)
        return tuple(SourceFile(name, self._footer(name).rows) for name in listed.names)

    def read(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        return concat_samples(self.pieces(file, start, stop), file.name)

    def pieces(self, file: SourceFile, start: int, stop: int) -> Iterator[pa.Table]:
        partitions = self._partitions(file.name)
        for table, footer in self._rows(file.name, start, stop):
            yield as_samples(table, self.columns, file.name, self._all_names(file.name, footer), partitions)

    def raw(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        return pa.concat_tables([table for table, _ in self._rows(file.name, start, stop)])

    def ids(self, file: SourceFile) -> pa.ChunkedArray:
        fs, _ = open_filesystem(self.parquet)
        partitions, name = self._partitions(file.name), self.columns.sample_id
        with reading(fs, file.name, KIND), fs.open(file.name, "rb") as handle, pq.ParquetFile(handle) as parquet:
            table = parquet.read(columns=[column for column in parquet.schema_arrow.names if column == name])
        table = add_ranges(plain_table(table), pandas_ranges(table.schema, table.num_rows), [name])
        return sample_ids(partitions.add(table, file.name, [name]), self.columns, file.name)

    def left_out(self) -> dict[str, str]:
        left_out: dict[str, str] = {}
        for name in self._listed.names:
            left_out |= self._roles(name, self._footer(name)).left_out
        return left_out

    def notes(self) -> list[str]:
        return self._listed.notes

    def stamp(self, file: SourceFile) -> Version:
        fs, _ = open_filesystem(self.parquet)
        with reading(fs, file.name, KIND) as version:
            return version

    def place_of(self, file: SourceFile) -> str:
        return inside(self._root, file.name)

    def column_names(self, file: SourceFile) -> list[str]:
        return self._all_names(file.name, self._footer(file.name))

    def preprocessing(self) -> None:
        return None

    def to_dict(self) -> dict[str, Any]:
        return {"parquet": self.parquet, "columns": self.columns.model_dump()}

    def _rows(self, name: str, start: int, stop: int) -> Iterator[tuple[pa.Table, _Footer]]:
        """Rows [start, stop) of a file in tables of bounded memory, in the columns that are used, and its footer."""
        for table, footer in self._decoded(name, start, stop):
            rows, used = plain_table(table), self._roles(name, footer).used
            rows = add_ranges(rows, footer.ranges, used, start)
            start += rows.num_rows
            yield self._partitions(name).add(rows, name, used), footer

    def _decoded(self, name: str, start: int, stop: int) -> Iterator[tuple[pa.Table, _Footer]]:
        """Rows [start, stop), at least one table.

        What was decoded last is kept: a row group is often larger than what is asked for, and the next rows lie in it.
        """
        fs, _ = open_filesystem(self.parquet)
        with reading(fs, name, KIND) as version, ExitStack() as opened_here:
            known, footer = self._footers.get(name, (None, None))
            decoded = self._last.take((name, version), start) if footer is not None and known == version else None
            parquet = None
            while True:
                if decoded is None or footer is None:
                    if parquet is None:
                        handle = opened_here.enter_context(fs.open(name, "rb"))
                        parquet = opened_here.enter_context(pq.ParquetFile(handle))
                        # The file may be another one than a moment ago: its footer now says where its rows are.
                        footer = _Footer.of(parquet)
                        self._footers[name] = (version, footer)
                    assert footer is not None
                    columns = self._roles(name, footer).used
                    wanted = [n for n in footer.names if n in columns or n in self._partitions(name)]
                    self._last.put(None, None)  # frees it before more is decoded
                    decoded = decode(fs, name, parquet, footer.firsts, footer.groups(start, stop), wanted)
                if start >= min(stop, footer.rows):
                    yield decoded.table.slice(0, 0), footer
                for table in decoded.rows(start, stop):
                    yield table, footer
                start = max(start, decoded.stop)
                if start >= min(stop, footer.rows):
                    self._last.put((name, version), decoded)
                    return
                table = decoded = None

    def _footer(self, name: str) -> _Footer:
        fs, _ = open_filesystem(self.parquet)
        with reading(fs, name, KIND) as version:
            known, footer = self._footers.get(name, (None, None))
            if footer is None or known != version:
                with fs.open(name, "rb") as handle, pq.ParquetFile(handle) as parquet:
                    footer = _Footer.of(parquet)
                self._footers[name] = (version, footer)
            return footer

    def _roles(self, name: str, footer: _Footer) -> Roles:
        return Roles.of(self._all_names(name, footer), self.columns, footer.index, self._partitions(name))

    def _all_names(self, name: str, footer: _Footer) -> list[str]:
        """A file's columns, and those that its metadata and its folders say."""
        names = [*footer.names, *footer.ranges]
        return [*names, *self._partitions(name).added(names)]

    def _partitions(self, name: str) -> Partitions:
        # The types of partitions follow from all files, which are listed only where a folder has such a name.
        return self._all_partitions if "=" in inside(self._root, name) else NO_PARTITIONS

    @functools.cached_property
    def _listed(self) -> FileList:
        return list_files(self.parquet, ENDINGS, KIND)

    @functools.cached_property
    def _root(self) -> str:
        return root_of(self.parquet)

    @functools.cached_property
    def _all_partitions(self) -> Partitions:
        return Partitions.of(self._root, self._listed.names)

    @functools.cached_property
    def _footers(self) -> dict[str, tuple[Version, _Footer]]:
        return {}

    @functools.cached_property
    def _last(self) -> LastDecoded:
        return LastDecoded()


@dataclass(frozen=True)
class _Footer:
    """firsts: the first row of each row group, and one past the last row. index, ranges: of a pandas data frame."""

    firsts: list[int]
    names: list[str]
    index: list[str]
    ranges: dict[str, range]

    @property
    def rows(self) -> int:
        return self.firsts[-1]

    @staticmethod
    def of(parquet: pq.ParquetFile) -> _Footer:
        rows = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
        firsts, schema = [0, *itertools.accumulate(rows)], parquet.schema_arrow
        return _Footer(firsts, schema.names, pandas_index(schema), pandas_ranges(schema, firsts[-1]))

    def groups(self, start: int, stop: int) -> range:
        """The row groups that hold rows [start, stop)."""
        last = len(self.firsts) - 1
        return range(
            max(0, bisect.bisect_right(self.firsts, start) - 1), min(last, bisect.bisect_left(self.firsts, stop))
        )
