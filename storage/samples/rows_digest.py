"""The digest of rows, whatever Parquet layout they come from: of a table, or of pieces in bounded memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO

import numpy as np
import pyarrow as pa

from storage.base.digest import canonical_json
from storage.base.errors import VerificationError
from storage.objectstore.client_errors import in_words
from storage.objectstore.staging import this_machine
from storage.samples import tensor_columns

# Columns that wait for their turn in the digest are in memory up to so many bytes, and in a temporary file beyond.
# Spans of the default size stay below it.
MEMORY_BYTES = 512 << 20


def rows_digest(table: pa.Table) -> str:
    """sha256, in hex, of the values of some rows, whatever Parquet layout they came from.

    Each column counts with its name, type and values, in the table's column order: tensors and
    numbers as little-endian bytes, strings as UTF-8, each preceded by its length.
    """
    digest = hashlib.sha256()
    for field, column in zip(table.schema, table.columns, strict=True):
        digest.update(column_head(field, len(column)))
        for data in column_bytes(field, column):
            digest.update(data)
    return digest.hexdigest()


def column_head(field: pa.Field, rows: int) -> bytes:
    """What counts in `rows_digest` before a column's values. Raises TypeError for a column that no samples have."""
    if tensor_columns.is_text(field.type):
        return canonical_json([field.name, "string", rows])
    if tensor_columns.is_tensor(field):
        dtype, shape = tensor_columns.form(field)
        return canonical_json([field.name, dtype.name, [rows, *shape]])
    try:
        dtype = tensor_columns.numpy_dtype(field.type)
    except TypeError:
        raise TypeError(f"the column '{field.name}' is {field.type}; only samples have a digest") from None
    return canonical_json([field.name, dtype.name, [rows]])


def column_bytes(field: pa.Field, column: pa.ChunkedArray) -> Iterator[bytes | memoryview]:
    """What counts in `rows_digest` of a column's values; the same bytes, whatever chunks they are in."""
    for chunk in column.chunks:
        if tensor_columns.is_text(field.type):
            for text in chunk.to_pylist():
                data = text.encode()
                yield len(data).to_bytes(8, "little") + data
        elif len(chunk):
            yield np.ascontiguousarray(tensor_columns.unpack(chunk, field)).reshape(-1).view(np.uint8).data


class RowsDigest:
    """The digest of so many rows: `update` with each piece in order, then `hexdigest`. Use it as a context manager.

    The digest takes column after column, and a piece has some rows of all columns. So the first column is digested as
    it comes, and the others wait. All pieces have the same columns. where: the rows are from, for errors.
    """

    def __init__(self, rows: int, where: str) -> None:
        self._expected, self._rows, self._where = rows, 0, where
        self._digest, self._open = hashlib.sha256(), ExitStack()
        self._whole: str | None = None
        self._schema: pa.Schema | None = None
        self._pieces: list[pa.Table] = []
        self._file: IO[bytes] | None = None
        self._places: dict[int, list[tuple[int, int]]] = {}  # of each column, where its bytes are in the file

    def update(self, piece: pa.Table) -> None:
        """Raises StoreFull where this machine's temporary folder has no space."""
        if not self._rows and piece.num_rows == self._expected:
            self._whole = rows_digest(piece)
        else:
            if self._schema is None:
                self._schema = piece.schema
                self._digest.update(column_head(piece.schema.field(0), self._expected))
            for data in column_bytes(piece.schema.field(0), piece.column(0)):
                self._digest.update(data)
            self._pieces.append(piece)
            if sum(waiting.nbytes for waiting in self._pieces) > MEMORY_BYTES:
                self._write_pieces()
        self._rows += piece.num_rows

    def hexdigest(self) -> str:
        """`rows_digest` of all rows. Raises VerificationError when they were not so many as expected."""
        if self._rows != self._expected:
            raise VerificationError(
                f"{self._where} gave {self._rows:,} rows.",
                f"It had {self._expected:,} when the rows of the source were counted.",
                "Leave a source alone while a job reads it, and run the same command again.",
            )
        if self._whole is not None:
            return self._whole
        assert self._schema is not None
        for number, field in list(enumerate(self._schema))[1:]:
            self._digest.update(column_head(field, self._expected))
            for start, stop in self._places.get(number, ()):
                self._digest_of_file(start, stop)
            for piece in self._pieces:
                for data in column_bytes(field, piece.column(number)):
                    self._digest.update(data)
        return self._digest.hexdigest()

    def _write_pieces(self) -> None:
        with in_words(this_machine()):
            if self._file is None:
                self._file = self._open.enter_context(tempfile.TemporaryFile())
            while self._pieces:
                piece = self._pieces.pop(0)
                for number, field in list(enumerate(piece.schema))[1:]:
                    start = self._file.tell()
                    for data in column_bytes(field, piece.column(number)):
                        self._file.write(data)
                    self._places.setdefault(number, []).append((start, self._file.tell()))
            self._file.flush()

    def _digest_of_file(self, start: int, stop: int) -> None:
        assert self._file is not None
        self._file.seek(start)
        while start < stop and (data := self._file.read(min(1 << 20, stop - start))):
            self._digest.update(data)
            start += len(data)

    def __enter__(self) -> RowsDigest:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
