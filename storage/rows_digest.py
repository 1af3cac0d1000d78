"""`digest.rows_digest` of rows that come in pieces, in bounded memory."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import ExitStack
from typing import IO

import pyarrow as pa

from storage.digest import column_bytes, column_head, rows_digest
from storage.errors import SourceChanged
from storage.filesystems import in_words
from storage.stages import this_machine

# Columns that wait for their turn in the digest are in memory up to so many bytes, and in a temporary file beyond.
# Spans of the default size stay below it.
MEMORY_BYTES = 512 << 20


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
        """`rows_digest` of all rows. Raises SourceChanged when they were not so many as expected."""
        if self._rows != self._expected:
            raise SourceChanged(
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
