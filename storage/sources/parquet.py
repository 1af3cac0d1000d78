"""Samples in Parquet files behind any fsspec URL: one file, a folder of them, or a pattern."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.arrow_types import plain_table
from storage.filesystems import open_filesystem
from storage.roles import Columns, Roles, add_ranges, pandas_index, pandas_ranges
from storage.samples import SourceFile, as_samples, sample_ids
from storage.sources.file_list import FileList, inside, list_files, root_of
from storage.sources.located import Version, reading
from storage.sources.partitions import NO_PARTITIONS, Partitions

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
        table, footer = self._rows(file.name, start, stop)
        partitions = self._partitions(file.name)
        return as_samples(table, self.columns, file.name, self._all_names(file.name, footer), partitions)

    def raw(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        return self._rows(file.name, start, stop)[0]

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
        return {"parquet": self.parquet, "columns": asdict(self.columns)}

    def _rows(self, name: str, start: int, stop: int) -> tuple[pa.Table, _Footer]:
        """Rows [start, stop) of a file, in the columns that are used, and its footer."""
        table, first, footer = self._decoded(name, start, stop)
        rows, used = plain_table(table.slice(max(0, start - first), stop - start)), self._roles(name, footer).used
        rows = add_ranges(rows, footer.ranges, used, start)
        return self._partitions(name).add(rows, name, used), footer

    def _decoded(self, name: str, start: int, stop: int) -> tuple[pa.Table, int, _Footer]:
        """The row groups that hold rows [start, stop), the first row in them, and the file's footer.

        The last ones are kept: a row group is often larger than what is asked for, and the next rows lie in it.
        """
        fs, _ = open_filesystem(self.parquet)
        with reading(fs, name, KIND) as version:
            known, footer = self._footers.get(name, (None, None))
            if footer is not None and known == version:
                groups = footer.groups(start, stop)
                # Two spans may be read at the same time, by threads.
                table = self._last.get((name, version, groups))
                if table is not None:
                    return table, footer.firsts[groups[0]] if groups else 0, footer
            with fs.open(name, "rb") as handle, pq.ParquetFile(handle) as parquet:
                # The file may be another one than a moment ago: its footer now says where its rows are.
                footer = _Footer.of(parquet)
                groups = footer.groups(start, stop)
                columns = self._roles(name, footer).used
                wanted = [column for column in footer.names if column in columns or column in self._partitions(name)]
                table = parquet.read_row_groups(list(groups), columns=wanted)
            self._footers[name] = (version, footer)
            self._last.clear()
            self._last[(name, version, groups)] = table
            return table, footer.firsts[groups[0]] if groups else 0, footer

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
    def _last(self) -> dict[tuple[str, Version, range], pa.Table]:
        return {}


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
