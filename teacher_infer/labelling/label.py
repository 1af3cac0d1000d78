"""One span in, one committed shard out: an ordinary function, with no cluster in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from storage.base.errors import JobError, SourceError, VerificationError
from storage.cache.commits import Commit, new_attempt, publish_shard, read_commit, settle
from storage.encodings import Encoding
from storage.format.header import FORMAT_VERSION, ShardHeader, shard_schema
from storage.format.shard import row_bytes
from storage.objectstore.folder import Folder
from storage.samples.pieces import concat_samples
from storage.samples.rows_digest import rows_digest
from storage.samples.samples import Inputs, kept_columns
from storage.sources import Source
from teacher_infer.labelling.batch_labeller import BatchLabeller
from teacher_infer.labelling.watch import Step
from teacher_infer.labelling.writer import Writer
from teacher_infer.planning.plan import Span, added_fields
from teacher_infer.teachers import Teacher

_REMEDY = "Leave a source alone while a job reads it; run the recipe again to plan it as it is now."


@dataclass(frozen=True)
class Work:
    """What every span of a job has in common.

    settles: whether `label_span` commits what it publishes; False where one process commits for all,
    because the store does not keep `Folder.create`'s promise. inputs: as the spans' keys count it.
    key: the readable parts of the spans' keys, which their commits keep.
    """

    store: Folder
    source: Source
    encoding: Encoding
    teacher_digest: str
    batch_size: int
    max_bad_samples: int = 0
    settles: bool = True
    inputs: Inputs = "stored"
    compression: str = "zstd"
    key: dict[str, Any] | None = None


@dataclass
class Seconds:
    """Where a span's time went. Reading and writing go on while another span, or batch, is with the teacher."""

    read: float = 0.0
    forward: float = 0.0
    write: float = 0.0


class Report(Protocol):
    """Is called with the rows of a span that were labelled so far, and what is done next: `move` them, to read or to
    write, or `label` a batch."""

    def __call__(self, rows: int, step: Step) -> None: ...


@dataclass(frozen=True)
class Labelled:
    """A span's commit, and whether this call computed it or found it."""

    commit: Commit
    computed: bool
    seconds: Seconds = field(default_factory=Seconds)


def label_span(
    work: Work,
    teacher: Teacher,
    span: Span,
    turn: AbstractContextManager[Any] | None = None,
    report: Report | None = None,
) -> Labelled:
    """Run the teacher over a span's rows and commit their shard; find it, where another attempt has committed it.

    turn: held while the teacher runs, so that of several calls in threads one computes while others read
    and write. At most `writer.WAITING` batches of softened logits wait to be written: a slow disk
    stops the teacher, not the memory. Raises VerificationError when the rows are not those of the plan,
    JobError with a sample's id for one that cannot be labelled, SourceError for a label outside the
    classes, StoreFull and StoreLost.
    """
    with suppress(FileNotFoundError):
        return Labelled(read_commit(work.store, span.shard_key), computed=False)
    seconds, begun, done = Seconds(), time.perf_counter(), 0
    report = report or (lambda rows, step: None)
    samples = _read(work, span, report)
    report(0, "label")
    seconds.read = time.perf_counter() - begun
    labeller = BatchLabeller(teacher, work.batch_size, work.encoding, work.max_bad_samples, str(span))
    labeller.on_call = lambda: report(done, "label")
    staged = work.store.stage()
    try:
        with Writer(staged, work.store.stage_place(), work.encoding, compression=work.compression) as writer:
            with nullcontext() if turn is None else turn:
                begun = time.perf_counter()
                for batch, softened in labeller.label(samples):
                    if not writer.begun:
                        shape = softened.targets.classes, softened.positions
                        writer.begin(*_schema(work, span, samples.schema, *shape))
                    writer.put(batch, softened)
                    done += len(softened)
                seconds.forward = time.perf_counter() - begun - writer.waited
                if not writer.begun:
                    *lead, classes = _shape(teacher, samples, labeller, span)
                    writer.begin(*_schema(work, span, samples.schema, classes, lead[0] if lead else None))
            report(done, "move")
            rows = writer.finish()
        report(done, "move")
        begun = time.perf_counter()
        key = None if work.key is None else {**work.key, "span": span.digest}
        mine = publish_shard(work.store, span.shard_key, new_attempt(), staged, rows, labeller.quarantined, key)
        commit = settle(work.store, mine) if work.settles else mine
        seconds.write = writer.seconds + time.perf_counter() - begun
        return Labelled(commit, computed=True, seconds=seconds)
    finally:
        staged.unlink(missing_ok=True)


def _read(work: Work, span: Span, report: Report) -> pa.Table:
    def pieces() -> Iterator[pa.Table]:
        for piece in work.source.pieces(span.file, span.start, span.stop):
            yield piece
            report(0, "move")

    report(0, "move")
    try:
        samples = concat_samples(pieces(), span.file.name)
    except SourceError as error:
        raise VerificationError(
            f"The rows {span} could be planned, and cannot be read. {error}", "", _REMEDY
        ) from error
    found = rows_digest(samples)
    if found != span.digest:
        raise VerificationError(
            f"The rows {span} have the digest {found[:16]}.",
            f"The plan read {span.digest[:16]}.",
            _REMEDY,
        )
    return samples


def _schema(work: Work, span: Span, samples: pa.Schema, classes: int, positions: int | None) -> tuple[pa.Schema, int]:
    """A shard's schema, and the bytes a row that its row groups are sized by: those of a row with its inputs.

    A student that reads the inputs from elsewhere holds a row group with them in memory all the same.
    """
    digests = (work.teacher_digest, span.digest)
    header = ShardHeader(FORMAT_VERSION, span.shard_key, work.encoding, classes, *digests, positions)
    whole = shard_schema(samples, header, added_fields("stored", positions))
    kept = shard_schema(kept_columns(samples, work.inputs), header, added_fields(work.inputs, positions))
    return kept, row_bytes(whole)


def _shape(teacher: Teacher, samples: pa.Table, labeller: BatchLabeller, span: Span) -> tuple[int, ...]:
    """Of a row's logits, for a span whose only sample could not be labelled; that none of many can be is no fault
    of theirs."""
    shape = teacher.answer_shape(samples.slice(0, 1)) if samples.num_rows == 1 else None
    if shape is None:
        first = labeller.quarantined[0]
        raise JobError(
            f"The teacher can label no sample of {span}; of '{first.sample_id}': {first.reason}.",
            "A teacher can label most of a span.",
            "Look at the teacher, its dtype and the machine that it ran on.",
        )
    return shape
