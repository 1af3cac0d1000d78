"""Ranges of a source's rows: of spans and groups, and of pieces of bounded memory, which can be concatenated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from storage.base.errors import SourceError
from storage.samples import tensor_columns
from storage.samples.samples import SourceFile

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


def file_ranges(files: Iterable[SourceFile], rows: int) -> Iterator[tuple[SourceFile, int, int]]:
    """Ranges [start, stop) of `rows` rows, the last of a file with what is left. No range crosses two files, so that
    another file changes none of them.

    >>> [(file.name, *rows) for file, *rows in file_ranges([SourceFile("a", 5), SourceFile("b", 0)], 2)]
    [('a', 0, 2), ('a', 2, 4), ('a', 4, 5)]
    """
    for file in files:
        for start in range(0, file.rows, rows):
            yield file, start, min(start + rows, file.rows)


def piece_ranges(start: int, stop: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) in ranges of about PIECE_BYTES; at least one range, which may be empty.

    >>> list(piece_ranges(0, 5, PIECE_BYTES // 2)), list(piece_ranges(3, 3, 8))
    ([(0, 2), (2, 4), (4, 5)], [(3, 3)])
    """
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    for first in range(start, max(stop, start + 1), step):
        yield first, min(first + step, stop)
