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

from storage.errors import SourceError
from storage.filesystems import in_words, open_filesystem
from storage.samples import LABEL, Columns, SourceFile, as_samples
from storage.sources.ids import sample_ids
from storage.sources.located import find, inside, opened, told

KIND = "Parquet"


@dataclass(frozen=True)
class ParquetSource:
    parquet: str
    columns: Columns = Columns()

    def files(self) -> Sequence[SourceFile]:
        fs, _ = opened(self.parquet)
        return tuple(SourceFile(name, _rows_of(fs, name)) for name in find(self.parquet, [".parquet"], KIND))

    def read(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        table, first, names = self._decoded(file, start, stop)
        return as_samples(table.slice(start - first, stop - start), self.columns, file.name, names)

    def raw(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        table, first, _ = self._decoded(file, start, stop)
        return table.slice(start - first, stop - start)

    def ids(self, file: SourceFile) -> pa.ChunkedArray:
        fs, _ = open_filesystem(self.parquet)
        with told(file.name, KIND), fs.open(file.name, "rb") as handle, pq.ParquetFile(handle) as parquet:
            names = [name for name in parquet.schema_arrow.names if name == self.columns.sample_id]
            table = parquet.read(columns=names)
        return sample_ids(table, self.columns, file.name)

    def stamp(self, file: SourceFile) -> int:
        fs, _ = open_filesystem(self.parquet)
        with told(file.name, KIND):
            return fs.size(file.name)

    def place_of(self, file: SourceFile) -> str:
        return inside(self.parquet, file.name)

    def preprocessing(self) -> None:
        return None

    def _decoded(self, file: SourceFile, start: int, stop: int) -> tuple[pa.Table, int, list[str]]:
        """The row groups that hold rows [start, stop), the first row in them, and the file's column names.

        The last ones are kept: a row group is often larger than what is asked for, and the next rows lie in it.
        """
        fs, _ = open_filesystem(self.parquet)
        with told(file.name, KIND):
            # Another size means another file under the same name; its rows are digested where that matters.
            key = (file.name, fs.size(file.name))
            footer = self._footers.get(key)
            if footer is None:
                with fs.open(file.name, "rb") as handle, pq.ParquetFile(handle) as parquet:
                    footer = self._footers[key] = _Footer.of(parquet)
            groups = footer.groups(start, stop)
            # Two spans may be read at the same time, by threads.
            table = self._last.get((*key, groups))
            if table is None:
                with fs.open(file.name, "rb") as handle, pq.ParquetFile(handle) as parquet:
                    table = parquet.read_row_groups(list(groups), columns=self._wanted(footer.names))
                self._last.clear()
                self._last[(*key, groups)] = table
            return table, footer.firsts[groups[0]] if groups else 0, footer.names

    @functools.cached_property
    def _footers(self) -> dict[tuple[str, int], _Footer]:
        return {}

    @functools.cached_property
    def _last(self) -> dict[tuple[str, int, range], pa.Table]:
        return {}

    def _wanted(self, names: Sequence[str]) -> list[str] | None:
        if self.columns.inputs is None:
            return None
        label = self.columns.label if isinstance(self.columns.label, str) else LABEL
        wanted = {self.columns.sample_id, *self.columns.inputs, label}
        # Columns that are not there are reported by as_samples, which knows what each was wanted for.
        return [name for name in names if name in wanted]

    def to_dict(self) -> dict[str, Any]:
        return {"parquet": self.parquet, "columns": asdict(self.columns)}


@dataclass(frozen=True)
class _Footer:
    """firsts: the first row of each row group, and one past the last row."""

    firsts: list[int]
    names: list[str]

    @staticmethod
    def of(parquet: pq.ParquetFile) -> _Footer:
        rows = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
        return _Footer([0, *itertools.accumulate(rows)], parquet.schema_arrow.names)

    def groups(self, start: int, stop: int) -> range:
        """The row groups that hold rows [start, stop)."""
        last = len(self.firsts) - 1
        return range(
            max(0, bisect.bisect_right(self.firsts, start) - 1), min(last, bisect.bisect_left(self.firsts, stop))
        )


def _rows_of(fs: Any, name: str) -> int:
    try:
        with in_words(name), fs.open(name, "rb") as handle:
            return pq.read_metadata(handle).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"'{name}' is no Parquet file: {error}.", "Every file of a source is one.") from None
