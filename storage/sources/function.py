"""Samples from a Python function that yields Arrow tables, and yields the same again."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from storage.base.errors import SourceError
from storage.base.functions import call, find_function, guarded
from storage.samples.arrow_types import plain_table
from storage.samples.column_roles import Roles, add_ranges, pandas_index, pandas_ranges
from storage.samples.columns import Columns
from storage.samples.pieces import concat_samples, piece_ranges
from storage.samples.samples import SourceFile, as_samples, sample_ids

_one_call = threading.RLock()


@dataclass(frozen=True)
class FunctionSource:
    """`function(**arguments)` returns or yields pa.Table; all of it counts as one file."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    columns: Columns = Columns()

    def files(self) -> Sequence[SourceFile]:
        return [SourceFile(self.function, self._table.num_rows)]

    def read(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        return concat_samples(self.pieces(file, start, stop), file.name)

    def pieces(self, file: SourceFile, start: int, stop: int) -> Iterator[pa.Table]:
        table = self._table
        for first, last in piece_ranges(start, stop, table.nbytes // max(1, table.num_rows)):
            yield as_samples(table.slice(first, last - first), self.columns, file.name)

    def raw(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        return self._table.slice(start, stop - start)

    def ids(self, file: SourceFile) -> pa.ChunkedArray:
        return sample_ids(self._table, self.columns, file.name)

    def stamp(self, file: SourceFile) -> None:
        return None  # the function is called once

    def place_of(self, file: SourceFile) -> str:
        return file.name

    def left_out(self) -> dict[str, str]:
        schema = self._table.schema
        return Roles.of(schema.names, self.columns, pandas_index(schema)).left_out

    def notes(self) -> list[str]:
        return []

    def column_names(self, file: SourceFile) -> list[str]:
        return self._table.column_names

    def preprocessing(self) -> None:
        return None

    @property
    def _table(self) -> pa.Table:
        with _one_call:  # two spans may be read at the same time, by threads
            return self._made

    @functools.cached_property
    def _made(self) -> pa.Table:
        function = find_function(self.function, "source.function")
        made = call(function, self.arguments, self.function, SourceError, "source.arguments are its keyword arguments.")
        if not isinstance(made, pa.Table | Iterable):
            raise SourceError(
                f"{self.function} did not give Arrow tables.", "A source returns or yields pyarrow.Table."
            )
        with guarded(self.function, SourceError):  # a generator runs only now
            tables = [made] if isinstance(made, pa.Table) else list(made)
        if not all(isinstance(table, pa.Table) for table in tables):
            raise SourceError(
                f"{self.function} did not give Arrow tables.", "A source returns or yields pyarrow.Table."
            )
        if not tables:
            raise SourceError(f"{self.function} yielded nothing.", "A source has at least one sample.")
        try:
            return pa.concat_tables([_with_index(plain_table(table)) for table in tables])
        except pa.ArrowInvalid:
            raise SourceError(
                f"{self.function} yielded tables of different columns.", "All of them have the same columns and types."
            ) from None

    def to_dict(self) -> dict[str, Any]:
        return {"function": self.function, "arguments": self.arguments, "columns": self.columns.model_dump()}


def _with_index(table: pa.Table) -> pa.Table:
    ranges = pandas_ranges(table.schema, table.num_rows)
    return add_ranges(table, ranges, ranges)
