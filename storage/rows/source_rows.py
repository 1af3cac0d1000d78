"""The rows of a source, for learning from labels; digested at the start, and compared whenever they are read."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from storage.base.digest import sha256_of
from storage.base.errors import SourceError, VerificationError
from storage.format.rows import DecodedRows
from storage.rows.row_groups import Arrays, Column, Ints, plain_rows
from storage.samples import tensor_columns
from storage.samples.pieces import file_ranges, refuse_other_schema
from storage.samples.rows_digest import RowsDigest, rows_digest
from storage.samples.samples import SAMPLE_ID, input_names, refuse_duplicates
from storage.sources import Source, place_of

log = logging.getLogger("stillhouse.stream")

_REMEDY = "Leave a source alone while a job reads it, and begin again."


class SourceRows:
    """A source's rows, in groups inside its files. notes: on these files, for people."""

    GROUP_ROWS = 4096

    def __init__(self, source: Source) -> None:
        self._source = source
        files = source.files()
        self._groups = list(file_ranges(files, self.GROUP_ROWS))
        self.where, self.notes = place_of(source.to_dict()), source.notes()
        if skipped := sum(file.skipped_documents for file in files):
            log.warning("%d documents of %s are empty, and were skipped.", skipped, self.where)
        if not self._groups:
            raise SourceError(f"The source {self.where} is empty.", "There is at least one sample.")
        digests: list[str] = []
        ids: list[pa.Array] = []
        schema = None
        for file, start, stop in self._groups:
            with RowsDigest(stop - start, f"{file.name}[{start}:{stop}]") as rows:
                for piece in source.pieces(file, start, stop):
                    schema = piece.schema if schema is None else schema
                    refuse_other_schema(piece.schema, schema, file.name)
                    rows.update(piece)
                    ids.extend(piece.column(SAMPLE_ID).chunks)
                digests.append(rows.hexdigest())
        refuse_duplicates(ids)
        assert schema is not None
        self.rows = self.sizes = np.array([stop - start for _, start, stop in self._groups], np.int64)
        self.columns: Sequence[Column] = tuple(Column.of(field) for field in schema)
        self._digests = digests
        self.digest = sha256_of(digests)
        self._inputs = input_names(schema)

    def name_of(self, group: int) -> str:
        file, start, stop = self._groups[group]
        return f"rows {start} to {stop} of {file.name}"

    def loaded_rows(self, group_B: Ints, row_B: Ints) -> Ints:
        return row_B

    def load(self, group: int, out: Arrays) -> Arrays:
        """Raises VerificationError when the rows are not those that were digested at the start."""
        table = self._read(group)
        texts: Arrays = {}
        for column in self.columns:
            field, chunks = table.schema.field(column.name), table.column(column.name)
            if column.dtype is None:
                texts[column.name] = tensor_columns.unpack(chunks, field)
                continue
            start = 0
            for chunk in chunks.chunks:  # one by one, since joining them would copy them all
                out[column.name][start : start + len(chunk)] = tensor_columns.unpack(chunk, field)
                start += len(chunk)
        return texts

    def _read(self, group: int) -> pa.Table:
        try:
            table = self._source.read(*self._groups[group])
        except SourceError as error:
            raise VerificationError(
                f"{self.name_of(group)} could be read at the start, and cannot any more. {error}", "", _REMEDY
            ) from error
        found, expected = rows_digest(table), self._digests[group]
        if found != expected:
            raise VerificationError(
                f"{self.name_of(group)} have the digest {found[:16]}.", f"It was {expected[:16]} at the start.", _REMEDY
            )
        return table

    def rows_of(self, group_B: Ints, columns: Arrays) -> DecodedRows:
        return plain_rows(columns, self._inputs)
