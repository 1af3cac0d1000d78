"""What a stream reads: groups of rows, each read and checked as one, and how their columns lie in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from storage.base.errors import SourceError
from storage.format.rows import DecodedRows
from storage.samples import tensor_columns
from storage.samples.samples import LABEL, SAMPLE_ID

Ints = np.ndarray[Any, np.dtype[np.int64]]
Arrays = dict[str, np.ndarray[Any, Any]]

# What a text takes in memory, about.
TEXT_BYTES = 64


@dataclass(frozen=True)
class Column:
    """A column in memory: a value [*shape] of `dtype` a row; without dtype it is text, an object a row."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Bytes a row."""
        return TEXT_BYTES if self.dtype is None else self.dtype.itemsize * math.prod(self.shape)

    @staticmethod
    def of(field: pa.Field) -> Column:
        """The column that an Arrow field becomes."""
        if tensor_columns.is_tensor(field):
            return Column(field.name, *tensor_columns.form(field))
        if tensor_columns.is_text(field.type):
            return Column(field.name, None)
        return Column(field.name, tensor_columns.numpy_dtype(field.type))


class RowGroups(Protocol):
    """Groups of rows. They may be loaded by several threads at once, and go to another process."""

    @property
    def rows(self) -> Ints:
        """[R] the rows of each group that a stream gives."""
        ...

    @property
    def sizes(self) -> Ints:
        """[R] the rows of each group that are loaded; more than `rows` where some are left out."""
        ...

    @property
    def columns(self) -> Sequence[Column]: ...

    @property
    def digest(self) -> str:
        """Names the content, so that a state of other content is refused."""
        ...

    @property
    def where(self) -> str: ...

    def load(self, group: int, out: Arrays) -> Arrays:
        """Put a group's rows into `out`, [sizes[group], ...] for each column with a dtype; gives the text columns."""
        ...

    def name_of(self, group: int) -> str:
        """A group for people: where it lies."""
        ...

    def loaded_rows(self, group_B: Ints, row_B: Ints) -> Ints:
        """[B] where rows of groups lie among the loaded ones."""
        ...

    def rows_of(self, group_B: Ints, columns: Arrays) -> DecodedRows:
        """Rows [B] of some groups, from the arrays [B, ...] of all columns."""
        ...


def row_bytes(groups: RowGroups) -> int:
    """What a row takes in memory."""
    return sum(column.width for column in groups.columns)


def empty(columns: Sequence[Column], rows: int) -> Arrays:
    """New memory for rows of the columns that have a dtype."""
    return {c.name: np.empty((rows, *c.shape), c.dtype) for c in columns if c.dtype is not None}


def evenly_spaced(groups: RowGroups, count: int) -> list[int]:
    """Up to `count` of the row groups that have rows, evenly spaced from the first of them to the last."""
    some = np.flatnonzero(groups.rows)
    return some[np.linspace(0, len(some) - 1, min(count, len(some))).astype(int)].tolist()


def first_rows(groups: RowGroups, count: int) -> DecodedRows:
    """Up to `count` of the first rows, as many as the first row group with any has. Raises SourceError for no rows."""
    some = np.flatnonzero(groups.rows)
    if not len(some):
        raise SourceError(f"{groups.where} has no rows.", "There is at least one.")
    return read_group(groups, int(some[0]), count)


def read_group(groups: RowGroups, group: int, count: int | None = None) -> DecodedRows:
    """The rows of one group, or its first ones, in memory of their own."""
    held = empty(groups.columns, int(groups.sizes[group]))
    held.update(groups.load(group, held))
    rows = int(groups.rows[group])
    group_B = np.full(rows if count is None else min(rows, count), group, np.int64)
    row_B = groups.loaded_rows(group_B, np.arange(len(group_B)))
    return groups.rows_of(group_B, {name: array[row_B] for name, array in held.items()})


def plain_rows(columns: Arrays, inputs: Sequence[str]) -> DecodedRows:
    """Rows without targets."""
    return DecodedRows(columns[SAMPLE_ID], {name: columns[name] for name in inputs}, columns.get(LABEL), None)
