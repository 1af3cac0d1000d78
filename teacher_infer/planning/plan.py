"""Which spans there are, what each is called, and what is left to do. Runs no teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from storage.base.errors import SourceError
from storage.format.position_columns import summary_fields
from storage.samples import tensor_columns
from storage.samples.inputs_digest import INPUTS_XXH3_FIELD
from storage.samples.pieces import file_ranges, refuse_other_schema
from storage.samples.rows_digest import RowsDigest
from storage.samples.samples import LABEL, SAMPLE_ID, Inputs, SourceFile, kept_columns, refuse_duplicates
from storage.sources import Source
from teacher_infer.planning.key_parts import KeyParts
from teacher_infer.planning.span_size import MOST_ROWS, default_span_rows


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of one source file, the digest of their values, and the key of their shard."""

    file: SourceFile
    start: int
    stop: int
    digest: str
    shard_key: str

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.file.name}[{self.start}:{self.stop}]"


@dataclass(frozen=True)
class Plan:
    """All spans of a source in order.

    span_rows: of every span but the last one of a file. sample_bytes: what is stored of their samples, before anything
    is added. length: L of sequences, where the teacher says that they are some; without it labelled ones are known by
    their labels. skipped_documents: those of the source that have no tokens.
    """

    spans: tuple[Span, ...]
    span_rows: int
    sample_bytes: int
    example: pa.Table
    length: int | None = None
    skipped_documents: int = 0

    @property
    def rows(self) -> int:
        return sum(span.rows for span in self.spans)

    @property
    def positions(self) -> int:
        return self.rows * self.positions_a_row

    @property
    def positions_a_row(self) -> int:
        """L of sequences, and 1 of what is classified as a whole."""
        return labelled_positions(self.example.schema) if self.length is None else self.length

    def missing(self, committed: set[str]) -> list[Span]:
        return [span for span in self.spans if span.shard_key not in committed]


def labelled_positions(samples: pa.Schema) -> int:
    """The positions of a row by its labels: L of sequences with a label for each position, else 1."""
    field = samples.field(LABEL) if LABEL in samples.names else None
    return tensor_columns.form(field)[1][0] if field is not None and tensor_columns.is_tensor(field) else 1


def make_plan(
    source: Source,
    span_rows: int | None,
    key_parts: KeyParts,
    refuse: Callable[[pa.Table, str], None] | None = None,
    length: Callable[[pa.Table], int] | None = None,
) -> Plan:
    """Read and digest the whole source, a piece at a time. Raises SourceError when it is empty or an id appears twice.

    span_rows: None for `default_span_rows`. refuse: is shown all samples, a piece at a time, with where they are from,
    and raises for what the teacher cannot take. length: gives `Plan.length` for samples that it can take. Raises
    VerificationError, and StoreFull where a digest needs a temporary file and there is no space.
    """
    files = source.files()
    positions = None
    if span_rows is None:
        span_rows, positions = _default_rows(source, files, refuse, length)
    spans: list[Span] = []
    ids: list[pa.Array] = []
    size, example = 0, None
    for file, start, stop in file_ranges(files, span_rows):
        with RowsDigest(stop - start, f"{file.name}[{start}:{stop}]") as rows:
            for piece in source.pieces(file, start, stop):
                if not piece.num_rows:
                    continue  # rows that are gone since they were counted are missed below
                if example is None:
                    example = piece.take([0])  # a copy: a slice would keep the piece in memory
                refuse_other_schema(piece.schema, example.schema, file.name)
                if refuse is not None:
                    refuse(piece, file.name)
                rows.update(piece)
                ids.extend(piece.column(SAMPLE_ID).chunks)
                size += piece.select(kept_columns(piece.schema, key_parts.inputs).names).nbytes
            digest = rows.hexdigest()
        spans.append(Span(file, start, stop, digest, key_parts.shard_key(digest)))
    if example is None:
        raise SourceError(f"The source {source.to_dict()} is empty.", "There is at least one sample.")
    refuse_duplicates(ids)
    skipped = sum(file.skipped_documents for file in files)
    if length is not None and positions is None:
        positions = length(example)
    return Plan(tuple(spans), span_rows, size, example, positions, skipped)


def _default_rows(
    source: Source,
    files: Sequence[SourceFile],
    refuse: Callable[[pa.Table, str], None] | None,
    length: Callable[[pa.Table], int] | None,
) -> tuple[int, int | None]:
    """The rows of a span by default, and `Plan.length`, from the first rows of the source."""
    first = next((file for file in files if file.rows), None)
    if first is None:
        return MOST_ROWS, None
    piece = next(iter(source.pieces(first, 0, min(first.rows, MOST_ROWS))))
    if not piece.num_rows:
        return MOST_ROWS, None
    if refuse is not None:
        refuse(piece, first.name)
    positions = None if length is None else length(piece)
    labelled = labelled_positions(piece.schema)
    return default_span_rows(piece.schema, labelled if positions is None else positions), positions


def added_fields(inputs: Inputs, positions: int | None = None) -> list[pa.Field]:
    """What a shard says of each sample in columns of its own, beside the soft targets.

    positions: of a sample that is a sequence.
    """
    fields = summary_fields(positions)
    return [*fields, INPUTS_XXH3_FIELD] if inputs == "referenced" else [*fields]
