"""Which spans there are, what each is called, and what is left to do. Runs no teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from storage import tensors
from storage.digest import rows_digest, sha256_of
from storage.encodings import Encoding
from storage.errors import SourceError
from storage.samples import INPUTS_XXH3_FIELD, LABEL, SAMPLE_ID, Inputs, SourceFile, kept_columns, refuse_duplicates
from storage.shard import FORMAT_VERSION
from storage.sources import Source
from storage.summary import summary_fields


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
class Question:
    """What is asked of every span: by which teacher, kept in which encoding, with or without the inputs.

    teacher: the digest of its key parts, which `teacher_parts` shows. preprocessing: what made samples of the source's
    rows, as a tokenizer; None where nothing did. seed: only of an encoding that draws, else None; so that another seed
    in a recipe costs no teacher work.
    """

    teacher: str
    encoding: dict[str, Any]
    seed: int | None
    inputs: Inputs = "stored"
    preprocessing: dict[str, Any] | None = None
    teacher_parts: dict[str, Any] | None = None

    @staticmethod
    def of(teacher_digest: str, encoding: Encoding, seed: int, *, inputs: Inputs = "stored") -> Question:
        return Question(teacher_digest, encoding.key(), seed if encoding.draws else None, inputs)

    def parts(self) -> dict[str, Any]:
        """The readable parts of a shard key, without its span."""
        return {
            "format_version": FORMAT_VERSION,
            "teacher": self.teacher if self.teacher_parts is None else self.teacher_parts,
            "encoding": self.encoding,
            "seed": self.seed,
            "inputs": self.inputs,
            "preprocessing": self.preprocessing,
        }

    def shard_key(self, span_digest: str) -> str:
        facts = {
            "format_version": FORMAT_VERSION,
            "teacher": self.teacher,
            "encoding": self.encoding,
            "seed": self.seed,
            "span": span_digest,
        }
        # Counted only where they are not the usual ones, so that keys are what they were before there was a choice.
        if self.inputs != "stored":
            facts["inputs"] = self.inputs
        if self.preprocessing is not None:
            facts["preprocessing"] = self.preprocessing
        return sha256_of(facts)


@dataclass(frozen=True)
class Plan:
    """All spans of a source in order.

    sample_bytes: what is stored of their samples, before anything is added. length: L of sequences, where the teacher
    says that they are some; without it labelled ones are known by their labels. skipped_documents: those of the source
    that have no tokens.
    """

    spans: tuple[Span, ...]
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
        if self.length is not None:
            return self.length
        field = self.example.schema.field(LABEL) if LABEL in self.example.schema.names else None
        return tensors.form(field)[1][0] if field is not None and tensors.is_tensor(field) else 1

    def missing(self, committed: set[str]) -> list[Span]:
        return [span for span in self.spans if span.shard_key not in committed]


def cut(files: Iterable[SourceFile], span_rows: int) -> list[tuple[SourceFile, int, int]]:
    """Spans inside each file, never across two, so that another file moves none of them."""
    return [
        (file, start, min(start + span_rows, file.rows)) for file in files for start in range(0, file.rows, span_rows)
    ]


def make_plan(
    source: Source, span_rows: int, question: Question, refuse: Callable[[pa.Table, str], None] | None = None
) -> Plan:
    """Read and digest the whole source. Raises SourceError when it is empty or an id appears twice.

    refuse: is shown the samples of every span, with where they are from, and raises for what the teacher cannot take.
    """
    spans: list[Span] = []
    ids: list[pa.Array] = []
    size, example = 0, None
    files = source.files()
    for file, start, stop in cut(files, span_rows):
        table = source.read(file, start, stop)
        if example is None:
            example = table.slice(0, 1)
        elif not table.schema.equals(example.schema, check_metadata=True):
            raise SourceError(
                f"{file.name} has the columns {tensors.described(table.schema)}.",
                f"The files before it have {tensors.described(example.schema)}.",
                "All files of a source have the same columns, types and shapes.",
            )
        if refuse is not None:
            refuse(table, file.name)
        digest = rows_digest(table)
        spans.append(Span(file, start, stop, digest, question.shard_key(digest)))
        ids.extend(table.column(SAMPLE_ID).chunks)
        size += table.select(kept_columns(table.schema, question.inputs).names).nbytes
    if example is None:
        raise SourceError(f"The source {source.to_dict()} is empty.", "There is at least one sample.")
    refuse_duplicates(ids)
    return Plan(tuple(spans), size, example, skipped_documents=sum(file.skipped_documents for file in files))


def added_fields(inputs: Inputs, positions: int | None = None) -> list[pa.Field]:
    """What a shard says of each sample in columns of its own, beside the soft targets.

    positions: of a sample that is a sequence.
    """
    fields = summary_fields(positions)
    return [*fields, INPUTS_XXH3_FIELD] if inputs == "referenced" else [*fields]
