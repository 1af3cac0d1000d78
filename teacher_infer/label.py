"""One span in, one committed shard out: an ordinary function, with no cluster in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from storage.commits import Commit, commit_shard, new_attempt
from storage.digest import rows_digest
from storage.encodings import Encoding
from storage.errors import SourceChanged, SourceError, TeacherError
from storage.folder import Folder
from storage.samples import LABEL, SAMPLE_ID
from storage.shard import FORMAT_VERSION, ShardHeader, sample_rows, shard_schema, write_shard
from storage.sources import Source
from teacher_infer.plan import Span
from teacher_infer.soften import first_not_finite, soften
from teacher_infer.teachers import Teacher


@dataclass(frozen=True)
class Work:
    """What every span of a job has in common."""

    store: Folder
    source: Source
    encoding: Encoding
    teacher_digest: str
    batch_size: int


def label_span(work: Work, teacher: Teacher, span: Span) -> Commit:
    """Run the teacher over a span's rows and commit their shard.

    Raises SourceChanged when the rows are not those of the plan, TeacherError for logits that are
    not numbers (with the sample's id), SourceError for a label outside the classes.
    """
    samples = work.source.read(span.file, span.start, span.stop)
    found = rows_digest(samples)
    if found != span.digest:
        raise SourceChanged(
            f"The rows {span} have the digest {found[:16]}.",
            f"The plan read {span.digest[:16]}.",
            "Leave a source alone while a job reads it; run the recipe again to plan it as it is now.",
        )
    batches = _batches(work, teacher, span, samples)
    first = next(batches)
    staged = work.store.stage()
    try:
        rows = write_shard(staged, first.schema, _chain(first, batches))
        return commit_shard(work.store, span.shard_key, new_attempt(), staged, rows)
    finally:
        staged.unlink(missing_ok=True)


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _batches(work: Work, teacher: Teacher, span: Span, samples: pa.Table) -> Iterator[pa.RecordBatch]:
    schema: pa.Schema | None = None
    for start in range(0, samples.num_rows, work.batch_size):
        table = samples.slice(start, work.batch_size)
        rows = sample_rows(table)
        logits_PV = teacher.logits(list(rows.inputs.values()))
        classes = int(logits_PV.shape[1])
        softened_PV = soften(logits_PV, work.encoding.temperature)
        bad = first_not_finite(softened_PV)
        if bad is not None:
            raise TeacherError(
                f"The teacher gave NaN or infinite logits for the sample '{rows.sample_id[bad]}' (in {span}).",
                "Every logit is a finite number.",
                "Look at that sample, at targets.temperature and the teacher's dtype; float16 overflows above 65,504.",
            )
        _refuse_foreign_labels(table, classes, span)
        if schema is None:
            header = ShardHeader(
                FORMAT_VERSION, span.shard_key, work.encoding, classes, work.teacher_digest, span.digest
            )
            schema = shard_schema(samples.schema, header)
        arrays: list[Any] = [column.combine_chunks() for column in table.columns]
        arrays += work.encoding.encode(softened_PV)
        yield pa.record_batch(arrays, schema=schema)


def _refuse_foreign_labels(table: pa.Table, classes: int, span: Span) -> None:
    if LABEL not in table.schema.names:
        return
    labels = table.column(LABEL).to_numpy()
    outside = ((labels < 0) | (labels >= classes)).nonzero()[0]
    if len(outside):
        at = int(outside[0])
        raise SourceError(
            f"The sample '{table.column(SAMPLE_ID)[at].as_py()}' (in {span}) has the label {labels[at]}.",
            f"The teacher has the classes 0 to {classes - 1}.",
        )
