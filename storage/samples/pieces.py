"""Rows of a source in pieces of bounded memory: cut, and put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from storage.base.errors import SourceError
from storage.samples import tensor_columns

# Sources give rows in pieces of about so many bytes, so that memory does not grow with what is asked for.
PIECE_BYTES = 64 << 20


def concat_samples(pieces: Iterable[pa.Table], where: str) -> pa.Table:
    """Pieces of samples that follow one another as one table, without a copy. Raises SourceError."""
    tables: list[pa.Table] = []
    for piece in pieces:
        if tables:
            refuse_other_schema(piece.schema, tables[0].schema, where)
        tables.append(piece)
    return pa.concat_tables(tables)


def refuse_other_schema(found: pa.Schema, expected: pa.Schema, where: str) -> None:
    """Raises SourceError for samples of other columns, types or shapes than those before them."""
    if not found.equals(expected, check_metadata=True):
        raise SourceError(
            f"{where} has the columns {tensor_columns.described(found)}.",
            f"The rows before them have {tensor_columns.described(expected)}.",
            "All rows of a source have the same columns, types and shapes.",
        )


def row_ranges(start: int, stop: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) cut into ranges of PIECE_BYTES; at least one range, which may be empty.

    >>> list(row_ranges(0, 5, PIECE_BYTES // 2)), list(row_ranges(3, 3, 8))
    ([(0, 2), (2, 4), (4, 5)], [(3, 3)])
    """
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    for first in range(start, max(stop, start + 1), step):
        yield first, min(first + step, stop)
