"""`digest.rows_digest` of rows that come in pieces, in bounded memory."""

from __future__ import annotations

import hashlib
import tempfile
from types import TracebackType
from typing import IO

import pyarrow as pa

from storage.digest import column_bytes, column_head, rows_digest
from storage.errors import SourceChanged
from storage.filesystems import in_words
from storage.stages import this_machine

# So many bytes wait in memory for their turn in the digest, and what is more in a temporary file.
MEMORY_BYTES = 256 << 20


class RowsDigest:
    """The digest of so many rows: `update` with each piece in order, then `hexdigest`. Use it as a context manager.

    The digest takes column after column, and pieces are rows: so the first column is digested as it comes, and the
    others wait, beyond MEMORY_BYTES in temporary files of this machine. All pieces have the same columns.
    where: the rows are from, for errors.
    """

    def __init__(self, rows: int, where: str) -> None:
        self._expected, self._rows, self._where = rows, 0, where
        self._digest = hashlib.sha256()
        self._waiting: list[IO[bytes]] = []
        self._whole: str | None = None

    def update(self, piece: pa.Table) -> None:
        """Raises StoreFull where the temporary folder has no room."""
        if not self._rows and piece.num_rows == self._expected:
            self._whole = rows_digest(piece)
            self._rows = piece.num_rows
            return
        if not self._rows:
            self._digest.update(column_head(piece.schema.field(0), self._expected))
            others = [piece.schema.field(number) for number in range(1, piece.num_columns)]
            for field in others:
                spool = tempfile.SpooledTemporaryFile(MEMORY_BYTES // len(others))
                spool.write(column_head(field, self._expected))
                self._waiting.append(spool)
        self._rows += piece.num_rows
        with in_words(this_machine()):
            for number, field in enumerate(piece.schema):
                take = self._waiting[number - 1].write if number else self._digest.update
                for data in column_bytes(field, piece.column(number)):
                    take(data)

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
        for spool in self._waiting:
            spool.seek(0)
            while data := spool.read(1 << 20):
                self._digest.update(data)
            spool.close()
        return self._digest.hexdigest()

    def __enter__(self) -> RowsDigest:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for spool in self._waiting:
            spool.close()
